import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig
from aqtopo.data import Normalization, normalization_for, open_store, write_statistics, write_store
from aqtopo.data.inspection import inspect_store
from aqtopo.data.statistics import Moments, compute_statistics
from aqtopo.data.store import open_run_store
from aqtopo.variables import DYNAMIC_VARIABLES, TARGET_VARIABLES, VARIABLES

TinyConfig = Callable[..., RunConfig]


def test_statistics_equal_those_of_numpy_over_the_years(tiny_dataset: xr.Dataset, tiny_store: Path) -> None:
    statistics = compute_statistics(open_store(tiny_store), [2018, 2016])
    assert statistics.years == (2016, 2018)
    fields = tiny_dataset["fields"].sel(time=tiny_dataset["time"].dt.year != 2017).astype(float)
    for name in tiny_dataset["channel"].values:
        values = fields.sel(channel=name).values
        assert statistics.mean[name] == pytest.approx(values.mean(), rel=1e-12, abs=1e-12)
        assert statistics.std[name] == pytest.approx(values.std(), rel=1e-10)
    elevation = tiny_dataset["static"].sel(static_channel="elevation").values.astype(float)
    assert statistics.mean["elevation"] == pytest.approx(elevation.mean())
    assert statistics.std["elevation"] == pytest.approx(elevation.std())


def test_fill_values_are_counted_and_refused(damaged: Path) -> None:
    fields = zarr.open_array(damaged / "fields", mode="r+")
    channels = open_store(damaged).channels
    fields[30:40, channels.index("pm25"), 2, 3] = -9999.0
    fields[50, channels.index("temp"), 1, 1] = 12.0
    with pytest.raises(
        ValueError,
        match=r"10 values of pm25, the first -9999 at 2016-01-02T06.*1 values of temp, the first 12 at",
    ):
        write_statistics(damaged, [2016])
    write_statistics(damaged, [2017])


@pytest.mark.parametrize("name", TARGET_VARIABLES)
def test_a_level_of_other_units_is_refused(damaged: Path, name: str) -> None:
    fields, place = zarr.open_array(damaged / "fields", mode="r+"), DYNAMIC_VARIABLES.index(name)
    fields[:, place] = np.asarray(fields[:, place]) * 1e-9
    with pytest.raises(ValueError, match=rf"has a mean {name} of .*: it is in other units. Write it again"):
        write_statistics(damaged, [2016])


def test_missing_values_and_hours_are_left_out(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    tiny_dataset["fields"][5:40, 2] = np.nan
    tiny_dataset["fields"][50, 3, 2, 2] = np.inf
    dataset = tiny_dataset.isel(time=np.r_[3:100, 130:720])
    write_store(dataset, tmp_path / "gaps.zarr")
    statistics = compute_statistics(open_store(tmp_path / "gaps.zarr"), [2016])
    fields = dataset["fields"].sel(time="2016").values.astype(float)
    for channel in (2, 3):
        values = fields[:, channel][np.isfinite(fields[:, channel])]
        name = str(dataset["channel"].values[channel])
        assert statistics.mean[name] == pytest.approx(values.mean(), rel=1e-12)
        assert statistics.std[name] == pytest.approx(values.std(), rel=1e-10)


@given(seed=st.integers(0, 1000), cut=st.integers(1, 9), offset=st.sampled_from([0.0, 1e5]))
def test_merged_moments_are_those_of_all_values(seed: int, cut: int, offset: float) -> None:
    values = (offset + np.random.default_rng(seed).standard_normal((10, 2, 3, 4))).astype(np.float32)
    merged = Moments.of(values[:cut]).merged(Moments.of(values[cut:]))
    wide = values.astype(float)
    np.testing.assert_allclose(merged.mean, wide.mean(axis=(0, 2, 3)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.sqrt(merged.squares / merged.count), wide.std(axis=(0, 2, 3)), rtol=1e-9)


def test_written_statistics_are_read_back(damaged: Path) -> None:
    written = write_statistics(damaged, [2017])
    store = open_store(damaged, years=[2017])
    assert store.statistics_years == (2017,)
    assert store.mean == written.mean
    assert store.std == written.std


def test_statistics_of_several_sets_of_years_live_side_by_side(
    damaged: Path, tiny_config: TinyConfig
) -> None:
    first = open_store(damaged)
    before = normalization_for(tiny_config(), first)
    for years in ([2017], [2016, 2017], [2017]):
        write_statistics(damaged, years)
    again = open_store(damaged)
    assert [each.years for each in again.statistics] == [(2016,), (2016, 2017), (2017,)]
    assert (again.digest, again.mean) == (first.digest, first.mean)  # a run on 2016 sees no change
    assert normalization_for(tiny_config(), again) == before
    other = tiny_config(data={"store": str(damaged), "train_years": [2017], "validation_years": [2016]})
    second = open_run_store(other)
    assert normalization_for(other, second).mean == compute_statistics(second, [2017]).mean
    assert second.digest != first.digest


def test_statistics_of_the_same_years_are_replaced(damaged: Path) -> None:
    stored = zarr.open_group(damaged, mode="r+").attrs
    expected = open_store(damaged).mean
    stored["channel_mean"] = dict.fromkeys(stored["channel_mean"], 1.0)  # type: ignore[arg-type]
    write_statistics(damaged, [2017])
    write_statistics(damaged, [2016])
    store = open_store(damaged)
    assert [each.years for each in store.statistics] == [(2016,), (2017,)]
    assert store.mean == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channel_mean", [1.0]),
        ("channel_mean", {"u": "1"}),
        ("statistics_years", ["2016"]),
        ("statistics_years", 2016),
        ("further_statistics", {"2017": {}}),
        ("further_statistics", [{"channel_mean": {}}]),
    ],
)
def test_statistics_of_a_wrong_type_are_refused_by_name(damaged: Path, key: str, value: object) -> None:
    zarr.open_group(damaged, mode="r+").attrs[key] = value
    with pytest.raises(ValueError, match=rf"damaged\.zarr has .*(statistics_years|{key})"):
        open_store(damaged)


@pytest.mark.parametrize(
    ("years", "message"), [([2016, 2020], "has no hours in 2020"), ([], "over no years")]
)
def test_years_that_are_not_stored_are_refused(damaged: Path, years: list[int], message: str) -> None:
    before = (damaged / "zarr.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{message}.*2016, 2017, 2018"):
        write_statistics(damaged, years)
    assert (damaged / "zarr.json").read_text(encoding="utf-8") == before


def test_a_store_that_may_not_be_written_is_named(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zarr.core.attributes.Attributes, "update", read_only)
    with pytest.raises(ValueError, match=r"damaged\.zarr cannot be written .*Permission denied"):
        write_statistics(damaged, [2016])


def test_normalize_and_denormalize_are_inverse_and_broadcast() -> None:
    normalization = Normalization({"u": 1.0, "o3": 40.0}, {"u": 2.0, "o3": 20.0})
    values = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    normalized = normalization.normalize(values, ["o3", "u"])
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized[:, 0], (values[:, 0] - 40) / 20, rtol=1e-6)
    np.testing.assert_allclose(normalization.denormalize(normalized, ["o3", "u"]), values, atol=1e-5)


def test_a_channel_that_never_varies_is_normalised_with_std_1(
    tiny_dataset: xr.Dataset, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    tiny_dataset["fields"][:, tiny_dataset["channel"].values.tolist().index("rh")] = 60.0
    write_store(tiny_dataset, tmp_path / "flat.zarr")
    assert write_statistics(tmp_path / "flat.zarr", [2016]).std["rh"] == 0.0
    normalization = normalization_for(tiny_config(), open_store(tmp_path / "flat.zarr"))
    assert normalization.std["rh"] == 1.0
    assert normalization.normalize(np.full((1, 2, 2), 60.0, np.float32), ["rh"]).tolist() == [
        [[0, 0], [0, 0]]
    ]


def test_dataset_normalisation_uses_the_statistics_of_the_store(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    store = open_store(tiny_store)
    normalization = normalization_for(tiny_config(), store)
    assert normalization.mean == store.mean
    assert normalization.std == store.std


def test_a_variable_without_published_constants_is_refused_with_topoflow(
    with_blh: Path, tiny_config: TinyConfig
) -> None:
    write_statistics(with_blh, [2016])
    data = {"store": str(with_blh), "variables": ["u", "v", "elevation", "blh"]}
    store = open_store(with_blh)
    assert normalization_for(tiny_config(data=data), store).mean["blh"] == store.mean["blh"]
    with pytest.raises(ValueError, match=r"no published mean and standard deviation of blh.*\"dataset\""):
        normalization_for(tiny_config(data=data | {"normalization": "topoflow"}), store)


def test_topoflow_normalisation_is_the_published_one(tiny_store: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config(
        data={"normalization": "topoflow", "train_years": [2017], "validation_years": [2016]}
    )
    normalization = normalization_for(config, open_store(tiny_store))
    assert (normalization.mean["co"], normalization.std["co"]) == (200.0, 100.0)
    assert set(normalization.mean) == set(VARIABLES)


@pytest.mark.parametrize("normalization", ["dataset", "topoflow"])
def test_a_store_without_statistics_is_refused_with_the_command(
    tiny_dataset: xr.Dataset, tiny_config: TinyConfig, tmp_path: Path, normalization: str
) -> None:
    write_store(tiny_dataset, tmp_path / "bare.zarr")
    config = tiny_config(data={"normalization": normalization})
    with pytest.raises(ValueError, match=r"no statistics.*aqtopo data statistics .*bare\.zarr --years 2016`"):
        normalization_for(config, open_store(tmp_path / "bare.zarr"))


def test_stale_statistics_are_refused_with_the_command(damaged: Path, tiny_config: TinyConfig) -> None:
    write_statistics(damaged, [2016, 2017])
    config = tiny_config(data={"train_years": [2017], "validation_years": [2016]})
    with pytest.raises(
        ValueError, match=r"statistics over 2016; 2016, 2017, but the run trains on 2017.*--years 2017`"
    ):
        normalization_for(config, open_store(damaged))


@pytest.mark.parametrize("normalization", ["dataset", "topoflow"])
def test_a_channel_without_any_value_is_refused(
    tiny_dataset: xr.Dataset, tiny_config: TinyConfig, tmp_path: Path, normalization: str
) -> None:
    tiny_dataset["fields"][:240, tiny_dataset["channel"].values.tolist().index("no2")] = np.nan
    write_store(tiny_dataset, tmp_path / "nan.zarr")
    write_statistics(tmp_path / "nan.zarr", [2016])
    assert zarr.open_group(tmp_path / "nan.zarr", mode="r").attrs["channel_mean"]["no2"] is None  # type: ignore[index,call-overload]
    config = tiny_config(data={"normalization": normalization})
    with pytest.raises(ValueError, match=r"has no finite value of the channel no2 in the years 2016"):
        normalization_for(config, open_store(tmp_path / "nan.zarr"))


@pytest.mark.parametrize("value", [None, -1.0, math.nan, math.inf, "1", True])
def test_a_stored_deviation_that_is_none_is_refused(damaged: Path, value: object) -> None:
    attributes = zarr.open_group(damaged, mode="r+").attrs
    attributes["channel_std"] = {**attributes["channel_std"], "o3": value}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"channel_std.*Correct the attribute, or remove it and run"):
        open_store(damaged)


@pytest.mark.parametrize("key", ["channel_mean", "channel_std"])
def test_a_mean_without_a_deviation_is_refused(damaged: Path, key: str) -> None:
    attributes = zarr.open_group(damaged, mode="r+").attrs
    attributes[key] = {name: each for name, each in attributes[key].items() if name != "o3"}  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="has a channel_mean of o3 without a channel_std, or the reverse"):
        open_store(damaged)


@pytest.mark.parametrize("name", ["o3", "elevation"])
def test_a_stored_deviation_of_0_needs_a_constant_channel(
    damaged: Path, tiny_config: TinyConfig, name: str
) -> None:
    attributes = zarr.open_group(damaged, mode="r+").attrs
    attributes["channel_std"] = {**attributes["channel_std"], name: 0}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"has a standard deviation of 0 for {name} and values"):
        normalization_for(tiny_config(), open_store(damaged))
    assert any(f"{name}: " in finding.text for finding in inspect_store(damaged))
