from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data import Store, open_store, write_statistics, write_store
from aqtopo.data.batch import Batch, BatchReader
from aqtopo.data.forcings import forcing
from aqtopo.data.samples import PADDING
from aqtopo.variables import INPUT_VARIABLES, TARGET_VARIABLES, VARIABLES

TinyConfig = Callable[..., RunConfig]

TIMES = np.array(["2016-01-02T00", "2016-01-03T12"], "datetime64[h]")
LEADS = np.array([[12, 24, 48, 96], [12, 24, 48, 96]])


def read(
    store: Path | Store,
    config: RunConfig,
    times: NDArray[np.datetime64] = TIMES,
    leads: NDArray[np.int64] = LEADS,
    places: tuple[int, ...] = (5, 3),
) -> Batch:
    opened = store if isinstance(store, Store) else open_store(store)
    return BatchReader(opened, config).batch(times, leads, np.array(places))


def rewritten(dataset: xr.Dataset, path: Path) -> Path:
    write_store(dataset, path)
    write_statistics(path, [2016])
    return path


def channel(dataset: xr.Dataset, name: str) -> int:
    return int(dataset["channel"].values.tolist().index(name))


def test_shapes_types_and_labels(tiny_store: Path, tiny_config: TinyConfig) -> None:
    batch = read(tiny_store, tiny_config())
    assert batch.inputs.shape == (2, 15, 8, 16)
    assert batch.wind.shape == (2, 2, 8, 16)
    assert batch.targets.shape == batch.valid.shape == (2, 4, 6, 8, 16)
    assert {batch.inputs.dtype, batch.wind.dtype, batch.targets.dtype, batch.lead_hours.dtype} == {
        torch.float32
    }
    assert batch.valid.dtype == torch.bool
    assert batch.lead_hours.tolist() == LEADS.tolist()
    assert batch.places == (5, 3)
    assert batch.samples == 2
    np.testing.assert_array_equal(batch.times, TIMES)
    assert batch.filled == 0


@pytest.mark.parametrize("normalization", ["dataset", "topoflow"])
def test_inputs_are_the_normalised_fields_in_the_order_of_the_variables(
    tiny_dataset: xr.Dataset, tiny_store: Path, tiny_config: TinyConfig, normalization: str
) -> None:
    batch = read(tiny_store, tiny_config(data={"normalization": normalization}))
    store = open_store(tiny_store)
    for place, name in enumerate(INPUT_VARIABLES):
        array = "fields" if name in store.channels else "static"
        selected = tiny_dataset[array].sel({tiny_dataset[array].dims[-3]: name})
        truth = selected.sel(time=TIMES[1]).values if array == "fields" else selected.values
        mean, std = (
            (store.mean[name], store.std[name])
            if normalization == "dataset"
            else (VARIABLES[name].topoflow_mean, VARIABLES[name].topoflow_std)
        )
        np.testing.assert_allclose(batch.inputs[1, place], (truth - mean) / std, rtol=1e-4, atol=1e-4)


HISTORY = {
    "forcings": ["cos_local_time", "insolation"],
    "history_hours": [6, 24],
    "history_variables": ["o3", "pm25"],
}


def test_further_inputs_are_forcings_then_earlier_fields(tiny_store: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config(data=HISTORY)
    assert config.data.inputs[15:] == (
        *HISTORY["forcings"],
        "o3_6h_before",
        "pm25_6h_before",
        "o3_24h_before",
        "pm25_24h_before",
    )
    batch, plain = read(tiny_store, config), read(tiny_store, tiny_config())
    store = open_store(tiny_store)
    np.testing.assert_array_equal(batch.inputs[:, :15], plain.inputs)
    np.testing.assert_array_equal(batch.targets, plain.targets)
    for sample, time in enumerate(TIMES):
        for place, name in enumerate(HISTORY["forcings"]):
            expected = forcing(name, np.array([time]), store.lat, store.lon)[0]
            np.testing.assert_array_equal(batch.inputs[sample, 15 + place], expected)
        for place, (name, hours) in enumerate(config.data.history):
            earlier = read(tiny_store, tiny_config(), np.array([time - hours]), LEADS[:1], (0,))
            expected = earlier.inputs[0, INPUT_VARIABLES.index(name)]
            np.testing.assert_array_equal(batch.inputs[sample, 17 + place], expected)


def test_gaps_in_earlier_fields_are_filled_and_counted(
    tiny_dataset: xr.Dataset, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    tiny_dataset["fields"].loc[{"time": TIMES[0] - 6, "channel": "o3", "lon": tiny_dataset["lon"][3]}] = (
        np.nan
    )
    config = tiny_config(data=HISTORY)
    batch = read(rewritten(tiny_dataset, tmp_path / "gap.zarr"), config)
    assert batch.filled == tiny_dataset["lat"].size
    assert (batch.inputs[0, config.data.inputs.index("o3_6h_before"), :, 3] == 0).all()


def test_a_start_without_its_history_is_refused(tiny_store: Path, tiny_config: TinyConfig) -> None:
    first = open_store(tiny_store).times[:1]
    with pytest.raises(ValueError, match=f"has no fields for {first[0] - 24}"):
        read(tiny_store, tiny_config(data=HISTORY), first, LEADS[:1], (0,))


AHEAD = {"forcings": ["insolation"], "weather_at_horizons": ["rh", "u"]}


def test_the_weather_has_the_fields_and_the_insolation_of_the_valid_times(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config(data=AHEAD)
    assert config.data.at_horizons == ("rh", "u", "insolation")
    batch, plain = read(tiny_store, config), read(tiny_store, tiny_config())
    store = open_store(tiny_store)
    assert batch.weather.shape == (2, 4, 3, 8, 16)
    assert plain.weather.shape == (2, 4, 0, 8, 16)
    np.testing.assert_array_equal(batch.inputs[:, :15], plain.inputs)
    np.testing.assert_array_equal(batch.targets, plain.targets)
    for sample, lead in np.ndindex(2, 4):
        time = TIMES[sample] + LEADS[sample, lead]
        then = read(tiny_store, tiny_config(), np.array([time]), LEADS[:1], (0,)).inputs[0]
        for place, name in enumerate(("rh", "u")):
            np.testing.assert_array_equal(
                batch.weather[sample, lead, place], then[INPUT_VARIABLES.index(name)]
            )
        expected = forcing("insolation", np.array([time]), store.lat, store.lon)[0]
        np.testing.assert_array_equal(batch.weather[sample, lead, 2], expected)


def test_padding_has_no_weather(tiny_store: Path, tiny_config: TinyConfig) -> None:
    batch = read(tiny_store, tiny_config(data=AHEAD), places=(PADDING, 3))
    assert not batch.weather[0].any()
    assert batch.weather[1].any()


def test_gaps_in_the_weather_are_filled_and_counted(
    tiny_dataset: xr.Dataset, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    gap = {"time": TIMES[0] + 12, "lon": tiny_dataset["lon"][3]}
    tiny_dataset["fields"].loc[gap | {"channel": "rh"}] = np.nan
    batch = read(rewritten(tiny_dataset, tmp_path / "gap.zarr"), tiny_config(data=AHEAD))
    assert batch.filled == tiny_dataset["lat"].size
    assert (batch.weather[0, 0, 0, :, 3] == 0).all()


def test_a_start_without_its_weather_is_refused(tiny_store: Path, tiny_config: TinyConfig) -> None:
    late = np.array(["2018-01-10T00"], "datetime64[h]")
    assert not read(tiny_store, tiny_config(), late, LEADS[:1], (0,)).valid[0, 1:].any()
    with pytest.raises(ValueError, match="has no fields for 2018-01-11T00"):
        read(tiny_store, tiny_config(data=AHEAD), late, LEADS[:1], (0,))


def test_targets_are_the_normalised_fields_at_the_lead_times(
    tiny_dataset: xr.Dataset, tiny_store: Path, tiny_config: TinyConfig
) -> None:
    batch = read(tiny_store, tiny_config())
    store = open_store(tiny_store)
    for sample, time in enumerate(TIMES):
        for lead in range(4):
            truth = tiny_dataset["fields"].sel(time=time + np.timedelta64(int(LEADS[sample, lead]), "h"))
            for place, name in enumerate(TARGET_VARIABLES):
                expected = (truth.sel(channel=name).values - store.mean[name]) / store.std[name]
                np.testing.assert_allclose(batch.targets[sample, lead, place], expected, rtol=1e-4, atol=1e-4)


def test_a_run_may_choose_and_order_its_variables(tiny_store: Path, tiny_config: TinyConfig) -> None:
    everything = read(tiny_store, tiny_config())
    chosen = ("elevation", "o3", "u", "v", "lat2d", "pm25")
    some = read(tiny_store, tiny_config(data={"variables": list(chosen), "targets": ["o3", "pm25"]}))
    order = [INPUT_VARIABLES.index(name) for name in chosen]
    torch.testing.assert_close(some.inputs, everything.inputs[:, order], rtol=0, atol=0)
    torch.testing.assert_close(some.targets, everything.targets[:, :, [5, 0]], rtol=0, atol=0)


@pytest.mark.parametrize("normalization", ["dataset", "topoflow"])
def test_wind_stays_in_metres_a_second(
    tiny_dataset: xr.Dataset, tiny_store: Path, tiny_config: TinyConfig, normalization: str
) -> None:
    batch = read(tiny_store, tiny_config(data={"normalization": normalization}))
    truth = tiny_dataset["fields"].sel(time=TIMES, channel=["u", "v"]).values
    np.testing.assert_array_equal(batch.wind.numpy(), truth)


def test_valid_follows_the_mask(tiny_store: Path, tiny_config: TinyConfig) -> None:
    batch = read(tiny_store, tiny_config())
    mask = open_store(tiny_store).static["mask"] > 0
    assert not mask.all()
    assert torch.equal(batch.valid, torch.from_numpy(mask).expand(2, 4, 6, 8, 16))


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_a_missing_input_becomes_the_channel_mean_and_is_counted(
    tiny_dataset: xr.Dataset, tiny_config: TinyConfig, tmp_path: Path, missing: float
) -> None:
    hour = 24
    tiny_dataset["fields"][hour, channel(tiny_dataset, "rh"), 2:4, 3] = missing
    tiny_dataset["fields"][hour, channel(tiny_dataset, "v"), 1, 1] = missing
    store = rewritten(tiny_dataset, tmp_path / "holes.zarr")
    batch = read(store, tiny_config())
    assert batch.filled == 3
    assert batch.inputs.isfinite().all()
    assert (batch.inputs[0, INPUT_VARIABLES.index("rh"), 2:4, 3] == 0).all()
    assert batch.inputs[0, INPUT_VARIABLES.index("rh"), 4, 3] != 0
    assert batch.wind[0, 1, 1, 1] == pytest.approx(open_store(store).mean["v"], rel=1e-6)


def test_a_missing_target_is_not_valid_and_stays_finite(
    tiny_dataset: xr.Dataset, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    hour = 24 + 12
    tiny_dataset["fields"][hour, channel(tiny_dataset, "o3"), 2, 3] = np.nan
    batch = read(rewritten(tiny_dataset, tmp_path / "holes.zarr"), tiny_config())
    assert batch.filled == 0
    assert batch.targets.isfinite().all()
    expected = torch.ones(2, 4, 6, 8, 16, dtype=torch.bool)
    expected[..., 0] = False
    expected[0, 0, TARGET_VARIABLES.index("o3"), 2, 3] = False
    assert torch.equal(batch.valid, expected)


def test_a_target_hour_that_is_not_stored_is_nowhere_valid(
    tiny_dataset: xr.Dataset, tiny_store: Path, tiny_config: TinyConfig
) -> None:
    last = np.array(["2018-01-10T12"], "datetime64[h]")
    batch = read(tiny_store, tiny_config(), last, np.array([[11, 12]]), (0,))
    assert batch.valid[0, 0].any()
    assert not batch.valid[0, 1].any()
    assert (batch.targets[0, 1] == 0).all()


def test_a_start_time_that_is_not_stored_is_refused(tiny_store: Path, tiny_config: TinyConfig) -> None:
    absent = np.array(["2016-02-01T00"], "datetime64[h]")
    with pytest.raises(ValueError, match="has no fields for 2016-02-01T00"):
        read(tiny_store, tiny_config(), absent, np.array([[12]]), (0,))


@pytest.fixture
def hours_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the hours that are read, in order."""
    hours: list[int] = []
    reading = Store.read_without_deadline

    def read_without_deadline(store: Store, first: int, last: int) -> Any:
        hours.extend(range(first, last))
        return reading(store, first, last)

    monkeypatch.setattr(Store, "read_without_deadline", read_without_deadline)
    return hours


def test_padding_is_zero_and_reads_nothing(
    tiny_store: Path, tiny_config: TinyConfig, hours_read: list[int]
) -> None:
    batch = read(tiny_store, tiny_config(), places=(PADDING, 3))
    assert sorted(hours_read) == [60, 72, 84, 108, 156]
    assert batch.samples == 1
    for tensor in (batch.inputs, batch.wind, batch.targets, batch.valid, batch.lead_hours):
        assert not tensor[0].any()
    assert batch.valid[1].any()
    assert np.isnat(batch.times).tolist() == [True, False]
    alone = read(tiny_store, tiny_config(), TIMES[1:], LEADS[1:], (3,))
    torch.testing.assert_close(batch.inputs[1:], alone.inputs, rtol=0, atol=0)


def test_batch_of_only_padding_reads_nothing(
    tiny_store: Path, tiny_config: TinyConfig, hours_read: list[int]
) -> None:
    batch = read(tiny_store, tiny_config(), places=(PADDING, PADDING))
    assert hours_read == []
    assert batch.samples == 0
    assert not batch.valid.any()


def test_an_hour_that_several_samples_need_is_read_once(
    tiny_store: Path, tiny_config: TinyConfig, hours_read: list[int]
) -> None:
    times = np.array(["2016-01-01T00", "2016-01-01T12"], "datetime64[h]")
    read(tiny_store, tiny_config(), times, np.array([[12, 24], [12, 24]]))
    assert hours_read == [0, 12, 24, 36]


def test_batches_of_a_store_with_descending_latitude_are_flipped(
    tiny_dataset: xr.Dataset, tiny_store: Path, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    flipped = rewritten(tiny_dataset.isel(lat=slice(None, None, -1)), tmp_path / "flipped.zarr")
    batch, north_down = read(tiny_store, tiny_config()), read(flipped, tiny_config())
    torch.testing.assert_close(north_down.inputs, batch.inputs.flip(-2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(north_down.wind, batch.wind.flip(-2), rtol=0, atol=0)


def test_clone_and_to_keep_labels_and_values(tiny_store: Path, tiny_config: TinyConfig) -> None:
    batch = read(tiny_store, tiny_config())
    for copy in (batch.clone(), batch.to("cpu")):
        torch.testing.assert_close(copy.targets, batch.targets, rtol=0, atol=0)
        assert copy.places == batch.places
    assert batch.clone().inputs.data_ptr() != batch.inputs.data_ptr()
    assert batch.to("meta").inputs.device.type == "meta"
