"""Property tests of forecast: a store of another form gives the same forecast, a harmful one is refused."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig
from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.data.shards import shard_path
from aqtopo.inference.export import export_model
from aqtopo.inference.forecast import forecast
from aqtopo.inference.load import load_model
from aqtopo.variables import TARGET_VARIABLES
from tests.conftest import make_tiny_dataset, tiny_tree
from tests.data.test_outside_forms import door_draws
from tests.data.test_write_forms import HARMLESS, Draw, changed, given_to_writer

HOURS, EARLIER = 50, (6, 24)
WEST = -200.0
"""Shift of the longitudes, after which they are negative in one convention and above 180 in the other."""


def usual() -> xr.Dataset:
    dataset = make_tiny_dataset()
    del dataset.attrs["simulated"]  # NetCDF has no booleans
    return turned(dataset, WEST)


def turned(dataset: xr.Dataset, degrees: float) -> xr.Dataset:
    shifted = dataset.assign_coords(lon=dataset["lon"] + degrees).copy(deep=True)
    shifted["static"].loc[{"static_channel": "lon2d"}] += degrees
    return shifted


@dataclass(frozen=True)
class Exported:
    """An exported model and the store that it was made with."""

    model: Path
    store: Path

    def forecast(self, hour: int, store: Path | None = None) -> xr.Dataset:
        return forecast(load_model(self.model, "best", store or self.store), usual_times()[hour])


def usual_times() -> Any:
    return make_tiny_dataset()["time"].values.astype("M8[h]")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, save_untrained: Callable[..., Path]) -> Exported:
    folder = tmp_path_factory.mktemp("forms")
    write_store(usual(), folder / "west.zarr")
    write_statistics(folder / "west.zarr", [2016])
    tree = tiny_tree(folder / "west.zarr", folder / "run")
    tree["data"] |= {"history_hours": list(EARLIER), "forcings": ["sin_local_time", "cos_julian_day"]}
    run_dir = save_untrained(RunConfig.model_validate(tree))
    export_model(run_dir, "best", folder / "model", None)
    return Exported(folder / "model", folder / "west.zarr")


def other_longitudes(dataset: xr.Dataset, _: Draw) -> xr.Dataset:
    return turned(dataset, 360.0)


def other_constants(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    """Change static fields, which are those of the training."""
    channel = draw(st.sampled_from(["elevation", "population"]))
    changed = dataset.copy(deep=True)
    changed["static"].loc[{"static_channel": channel}] *= 0.5
    return changed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    changes=st.lists(
        st.sampled_from([*HARMLESS, other_longitudes, other_constants]), max_size=4, unique=True
    ),
    hour=st.integers(max(EARLIER), HOURS - 1),
)
def test_a_store_of_another_form_gives_the_same_forecast(
    exported: Exported, data: Any, changes: list[Any], hour: int
) -> None:
    dataset = changed(usual().isel(time=slice(0, HOURS)), changes, data.draw)
    expected = exported.forecast(hour)
    with tempfile.TemporaryDirectory() as folder:
        write_store(given_to_writer(dataset, data.draw, Path(folder)), Path(folder, "new.zarr"))
        found = exported.forecast(hour, Path(folder, "new.zarr"))
    xr.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert found["lon"].equals(expected["lon"])


# Harmful changes of the store's own files. Each returns what the message must name.


def change_hour(path: Path, hour: int, channel: str, change: Callable[[Any], Any]) -> None:
    store, fields = open_store(path), zarr.open_array(path / "fields", mode="r+")
    place = store.channels.index(channel)
    fields[hour, place] = change(np.asarray(fields[hour, place]))


def fill_value(path: Path, hour: int, draw: Draw) -> str:
    channel = draw(st.sampled_from(open_store(path).channels))
    value = draw(st.sampled_from([-9999.0, -999.0, -99.0, 1e20, -32767.0]))
    row, column = draw(st.integers(0, 7)), draw(st.integers(0, 15))

    def put(values: Any) -> Any:
        values[row, column] = value
        return values

    change_hour(path, hour, channel, put)
    return f"has {channel} = .*1 of 128 values"


def other_units(path: Path, hour: int, draw: Draw) -> str:
    changes: dict[str, list[tuple[float, float]]] = {
        "temp": [(1.0, -273.15), (1.8, -459.67)],
        "psfc": [(0.01, 0.0), (1e-3, 0.0)],
        "rh": [(0.01, 0.0)],
        **{name: [(1e-3, 0.0), (1e-9, 0.0)] for name in TARGET_VARIABLES},
    }
    channel = draw(st.sampled_from(sorted(changes)))
    factor, offset = draw(st.sampled_from(changes[channel]))
    change_hour(path, hour, channel, lambda values: values * np.float32(factor) + np.float32(offset))
    return f"has (a mean )?{channel} "


def no_value(path: Path, hour: int, draw: Draw) -> str:
    channel = draw(st.sampled_from(open_store(path).channels))
    change_hour(path, hour, channel, lambda values: values * np.nan)
    return f"has no value of {channel}"


def damaged_shard(path: Path, hour: int, draw: Draw) -> str:
    shard = shard_path(path, hour)
    content = shard.read_bytes()
    shard.write_bytes(content[: draw(st.integers(0, len(content) - 1))])
    return f"unreadable .* shard fields/c/{hour // 24}/0/0/0|shard fields/c/{hour // 24}"


IN_PLACE = [fill_value, other_units, no_value, damaged_shard]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    harm=st.sampled_from(IN_PLACE),
    hour=st.integers(max(EARLIER), HOURS - 1),
    before=st.sampled_from([0, *EARLIER]),
)
def test_a_harmful_change_of_an_hour_that_is_read_is_refused(
    exported: Exported, data: Any, harm: Any, hour: int, before: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new.zarr")
        write_store(usual().isel(time=slice(0, HOURS)), path)
        message = harm(path, hour - before, data.draw)
        time = "" if harm is damaged_shard else str(usual_times()[hour - before])
        with pytest.raises(ValueError, match=f"{time}.*({message})"):
            exported.forecast(hour, path)


def hour_lost(dataset: xr.Dataset, hour: int, draw: Draw) -> tuple[xr.Dataset, str]:
    lost = hour - draw(st.sampled_from([0, *EARLIER]))
    return dataset.drop_isel(time=lost), rf"has no fields (at|for).*{dataset['time'].values[lost]:.13}"


def rows_the_other_way(dataset: xr.Dataset, _: int, draw: Draw) -> tuple[xr.Dataset, str]:
    axis = draw(st.sampled_from(["lat", "lon"]))
    return dataset.isel({axis: slice(None, None, -1)}), f"another grid.*{axis}.*sortby"


def grid_moved(dataset: xr.Dataset, _: int, draw: Draw) -> tuple[xr.Dataset, str]:
    axis = draw(st.sampled_from(["lat", "lon"]))
    moved = dataset.assign_coords({axis: dataset[axis] + draw(st.sampled_from([0.01, -0.5, 1.0]))})
    return moved, f"another grid.*{axis}.*Interpolate"


def grid_cut(dataset: xr.Dataset, _: int, draw: Draw) -> tuple[xr.Dataset, str]:
    axis = draw(st.sampled_from(["lat", "lon"]))
    return dataset.isel({axis: slice(1, None)}), f"another grid.*{axis}.*Interpolate"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    harm=st.sampled_from([hour_lost, rows_the_other_way, grid_moved, grid_cut]),
    hour=st.integers(max(EARLIER), HOURS - 1),
)
def test_a_store_without_the_hours_or_on_another_grid_is_refused(
    exported: Exported, data: Any, harm: Any, hour: int
) -> None:
    dataset, message = harm(usual().isel(time=slice(0, HOURS)), hour, data.draw)
    with tempfile.TemporaryDirectory() as folder:
        write_store(dataset, Path(folder, "new.zarr"))
        with pytest.raises(ValueError, match=message):
            exported.forecast(hour, Path(folder, "new.zarr"))
