"""Property tests of --against: forecasts of another form score alike, harmful changes are refused by name."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, note
from hypothesis import strategies as st

from aqtopo.data import Store
from aqtopo.evaluation.against import open_model
from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.inference.forecast_file import lead_time_dataset
from aqtopo.inference.load import LoadedRun
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES, VARIABLES
from tests.data.test_outside_forms import (
    FORMS,
    HARMFUL,
    HARMLESS,
    Change,
    Draw,
    Form,
    Harm,
    door_draws,
    drawn_form,
    pack,
    packed_default_fill,
    packed_in_memory,
)

INITS = np.array(["2018-01-02", "2018-01-04"], dtype="M8[h]")


@pytest.fixture(scope="module")
def run(load_untrained: Callable[..., LoadedRun]) -> LoadedRun:
    return load_untrained()


def forecasts(store: Store, seed: int) -> xr.Dataset:
    shape = (len(HORIZONS_H), len(TARGET_VARIABLES), *store.read(0).shape[1:])
    means = np.array([store.mean[name] for name in TARGET_VARIABLES])[:, None, None]
    made = [
        lead_time_dataset(
            (means * np.random.default_rng(seed + day).uniform(-0.02, 3.0, shape)).astype(np.float32),
            init_time=init,
            pollutants=[VARIABLES[name] for name in TARGET_VARIABLES],
            horizons_h=HORIZONS_H,
            lat=store.lat,
            lon=store.lon,
        ).drop_vars("time")
        for day, init in enumerate(INITS)
    ]
    return xr.concat(made, "init_time")


def scores(run: LoadedRun, paths: list[Path]) -> xr.DataArray:
    """Return the scores of the other model's forecasts."""
    other = open_model(paths, run.store, TARGET_VARIABLES, HORIZONS_H)
    found = evaluate(run, options=EvalOptions(against=other)).scores
    return found[["rmse", "mae", "bias"]].sel(forecast=other.name, drop=True).to_dataarray()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    seed=st.integers(0, 99),
    changes=st.lists(st.sampled_from(HARMLESS), max_size=5),
    packed=st.booleans(),
    zarr=st.booleans(),
)
def test_another_form_gives_the_same_forecasts_and_scores(
    run: LoadedRun, data: Any, seed: int, changes: list[Change], packed: bool, zarr: bool
) -> None:
    usual = forecasts(run.store, seed)
    form = drawn_form(usual, data.draw, changes)
    with tempfile.TemporaryDirectory() as folder:
        paths, days, axis = [], list[int](), form.names["init_time"]
        for part in range(data.draw(st.integers(1, 2))):
            taken = [part] if part or data.draw(st.booleans()) else [0, 1]
            days += taken
            each = Form(form.dataset.drop_encoding().isel({axis: taken}), form.variables, form.names)
            if packed:
                pack(each, data.draw)
                form.rounding = max(form.rounding, each.rounding)
            path = Path(folder, f"{part}.zarr" if zarr else f"{part}.nc")
            paths.append(each.write(path, 2 if zarr else None))
        if len(set(days)) < len(days):
            with pytest.raises(ValueError, match="has it too"):
                scores(run, paths)
            return
        other = open_model(paths, run.store, TARGET_VARIABLES, HORIZONS_H)
        for init in other.init_times:
            stacked = np.stack([usual[n].sel(init_time=init).values for n in TARGET_VARIABLES], axis=1)
            found = other.at(np.array([init]))[0]
            np.testing.assert_allclose(found, stacked, rtol=3e-6, atol=form.rounding * 700)
        usual.sel(init_time=other.init_times).to_netcdf(Path(folder, "usual.nc"))
        np.testing.assert_allclose(
            scores(run, paths), scores(run, [Path(folder, "usual.nc")]), rtol=1e-5, atol=form.rounding * 700
        )


def other_units_called_micrograms(form: Form, draw: Draw) -> str:
    array = form.dataset[form.names[draw(st.sampled_from(TARGET_VARIABLES))]]
    factor = draw(st.sampled_from([1e-3, 1e-9]))
    form.dataset[array.name] = (array * factor).assign_attrs(array.attrs)
    return "has a mean .*: it is in other units than its `units`"


def lead_time_lost(form: Form, draw: Draw) -> str:
    axis = form.names["lead_time"]
    lost = draw(st.sampled_from(HORIZONS_H))
    form.dataset = form.dataset.isel({axis: np.flatnonzero(form.dataset[axis].values != lost)})
    return f"has no lead time of {lost} h"


def lead_times_without_units(form: Form, _: Draw) -> str:
    axis = form.dataset[form.names["lead_time"]]
    form.dataset = form.dataset.assign_coords({axis.name: (axis.name, axis.values.astype(float))})
    return "lead times without units"


def grid_moved(form: Form, draw: Draw) -> str:
    axis = form.names[draw(st.sampled_from(["lat", "lon"]))]
    step = draw(st.sampled_from([0.01, -0.5, 1.0]))
    form.dataset = form.dataset.assign_coords({axis: form.dataset[axis] + step})
    return "another grid"


def other_days(form: Form, _: Draw) -> str:
    axis = form.names["init_time"]
    form.dataset = form.dataset.assign_coords({axis: form.dataset[axis] + np.timedelta64(400, "D")})
    return "none of the 6 initial times"


def half_hours(form: Form, _: Draw) -> str:
    axis = form.names["init_time"]
    form.dataset = form.dataset.assign_coords({axis: form.dataset[axis] + np.timedelta64(30, "m")})
    return "not a whole hour"


IN_MEMORY = [packed_in_memory, packed_default_fill]
FROM_READER = [harm for harm in HARMFUL if harm not in IN_MEMORY]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    changes=st.lists(st.sampled_from(FORMS), max_size=3),
    harm=st.sampled_from(
        [
            *FROM_READER,
            other_units_called_micrograms,
            lead_time_lost,
            lead_times_without_units,
            grid_moved,
            other_days,
            half_hours,
        ]
    ),
)
def test_a_harmful_change_of_forecasts_is_refused_by_name(
    run: LoadedRun, data: Any, changes: list[Change], harm: Harm
) -> None:
    form = drawn_form(forecasts(run.store, 0), data.draw, changes)
    message = harm(form, data.draw)
    note(f"{harm.__name__}: {form.dataset}")
    with tempfile.TemporaryDirectory() as folder:
        form.dataset.drop_encoding().to_netcdf(Path(folder, "other.nc"))
        with pytest.raises(ValueError, match=message):
            scores(run, [Path(folder, "other.nc")])
