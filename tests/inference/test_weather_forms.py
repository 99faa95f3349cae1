"""Property tests of --weather: another form gives the same forecast, a harmful change is refused by name."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, note
from hypothesis import strategies as st

from aqtopo.inference.forecast import forecast
from aqtopo.inference.load import LoadedRun
from aqtopo.inference.weather import open_weather
from tests.data.forecast_files import perfect_forecasts
from tests.data.test_outside_forms import (
    FORMS,
    HARMLESS,
    LEVELS,
    Change,
    Draw,
    Form,
    Harm,
    door_draws,
    drawn_form,
    pack,
)
from tests.evaluation.test_against_forms import (
    FROM_READER,
    grid_moved,
    half_hours,
    lead_time_lost,
    lead_times_without_units,
)

NAMES = ("u", "temp", "rh", "psfc")
INITS = np.array(["2018-01-02", "2018-01-03"], dtype="M8[h]")


@pytest.fixture(scope="module")
def run(load_untrained: Callable[..., LoadedRun]) -> LoadedRun:
    return load_untrained(weather_at_horizons=list(NAMES), forcings=["insolation"])


@pytest.fixture(scope="module")
def weather(run: LoadedRun) -> xr.Dataset:
    """The store's own weather, so that the forecast is the perfect one."""
    return perfect_forecasts(run.store, NAMES, INITS).drop_vars("time")


@pytest.fixture(scope="module")
def perfect(run: LoadedRun) -> list[xr.Dataset]:
    return [forecast(run, init, "perfect") for init in INITS]


def forecasts_with(run: LoadedRun, path: Path) -> list[xr.Dataset]:
    given = open_weather(path, run.store, run.config.data)
    given.at(INITS)  # together, so that a message counts the values of the whole file
    return [forecast(run, init, given) for init in INITS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    changes=st.lists(st.sampled_from(HARMLESS), max_size=5),
    packed=st.booleans(),
    version=st.sampled_from([None, 2, 3]),
    files=st.integers(1, 2),
)
def test_weather_of_another_form_gives_the_same_forecast(
    run: LoadedRun,
    weather: xr.Dataset,
    perfect: list[xr.Dataset],
    data: Any,
    changes: list[Change],
    packed: bool,
    version: int | None,
    files: int,
) -> None:
    form = drawn_form(weather, data.draw, changes)
    axis = form.names["init_time"]
    rounding = form.rounding
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for part in range(files):
            taken = [[0, 1]] if files == 1 else [[0], [1]]
            each = Form(form.dataset.drop_encoding().isel({axis: taken[part]}), form.variables, form.names)
            if packed:
                pack(each, data.draw)
                rounding = max(rounding, each.rounding)
            if version == 3 and ">f4" in str(each.dataset.dtypes):
                each.encoding = {}
            suffix = "nc" if version is None else "zarr"
            paths.append(each.write(Path(folder, f"{part}.{suffix}"), version))
        given = open_weather(paths, run.store, run.config.data)
        found = given.at(INITS)
        for place, name in enumerate(NAMES):
            low, high = LEVELS[name]
            tolerance = rounding * (high - low + abs(low))
            np.testing.assert_allclose(found[:, :, place], weather[name], rtol=3e-6, atol=tolerance)
        for init, expected in zip(INITS, perfect, strict=True):
            xr.testing.assert_allclose(forecast(run, init, given), expected, rtol=1e-4, atol=0.02)


def other_days(form: Form, draw: Draw) -> str:
    axis = form.names["init_time"]
    moved = form.dataset[axis] + np.timedelta64(draw(st.sampled_from([-24, 1, 9000])), "h")
    form.dataset = form.dataset.assign_coords({axis: moved})
    return "has no weather from the initial time 2018-01-0"


def value_lost(form: Form, draw: Draw) -> str:
    name = draw(st.sampled_from(form.variables))
    array = form.dataset[form.names[name]].copy()
    array[tuple(draw(st.integers(0, size - 1)) for size in array.shape)] = np.nan
    form.dataset[form.names[name]] = array
    return f"has no value of {name} in 1 of 128 cells .* h after 2018-01-0"


HARMFUL = [
    *FROM_READER, grid_moved, half_hours, lead_time_lost, lead_times_without_units, other_days, value_lost,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    changes=st.lists(st.sampled_from(FORMS), max_size=3),
    harm=st.sampled_from(HARMFUL),
    zarr=st.booleans(),
)
def test_harmful_weather_is_refused_by_name(
    run: LoadedRun, weather: xr.Dataset, data: Any, changes: list[Change], harm: Harm, zarr: bool
) -> None:
    form = drawn_form(weather, data.draw, changes)
    message = harm(form, data.draw)
    note(f"{harm.__name__}: {form.dataset}")
    form.dataset = form.dataset.drop_encoding()
    with tempfile.TemporaryDirectory() as folder:
        path = form.write(Path(folder, "gfs.zarr" if zarr else "gfs.nc"), 2 if zarr else None)
        with pytest.raises(ValueError, match=message):
            forecasts_with(run, path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(data=st.data(), name=st.sampled_from([*NAMES, "lead_time", "lat"]), version=st.sampled_from([2, 3]))
def test_weather_with_a_lost_chunk_is_refused_by_name(
    run: LoadedRun, weather: xr.Dataset, data: Any, name: str, version: int
) -> None:
    form = Form(
        weather.copy(deep=True), list(NAMES), {each: each for each in [*NAMES, *map(str, weather.dims)]}
    )
    if data.draw(st.booleans()):
        pack(form, data.draw)
    for each in NAMES:
        sizes = weather[each].sizes.values()
        chunks = tuple(data.draw(st.integers(1, size)) for size in sizes)
        form.encoding[each] = form.encoding.get(each, {}) | {"chunks": chunks}
    with tempfile.TemporaryDirectory() as folder:
        path = form.write(Path(folder, "gfs.zarr"), version)
        files = [file for file in (path / name).rglob("*") if file.is_file() and "z" not in file.name]
        data.draw(st.sampled_from(sorted(files))).unlink()
        message = rf"(lost|lacks) 1 of .* of (the coordinate )?{name}|no value of {name}"
        with pytest.raises(ValueError, match=message):
            forecasts_with(run, path)
