"""Property test of --against: forecasts of another form are read alike."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.data import open_store
from aqtopo.evaluation.against import open_model
from aqtopo.inference.forecast_file import lead_time_dataset
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES, VARIABLES
from tests.data.test_outside_forms import HARMLESS, Change, Form, door_draws, pack

INITS = np.array(["2018-01-02", "2018-01-04"], dtype="M8[h]")


def forecasts(tiny_store: Path, seed: int) -> xr.Dataset:
    store = open_store(tiny_store)
    shape = (len(HORIZONS_H), len(TARGET_VARIABLES), *store.read(0).shape[1:])
    made = [
        lead_time_dataset(
            np.random.default_rng(seed + day).uniform(-5.0, 300.0, shape).astype(np.float32),
            init_time=init,
            pollutants=[VARIABLES[name] for name in TARGET_VARIABLES],
            horizons_h=HORIZONS_H,
            lat=store.lat,
            lon=store.lon,
        ).drop_vars("time")
        for day, init in enumerate(INITS)
    ]
    return xr.concat(made, "init_time")


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
def test_another_form_gives_the_same_forecasts(
    tiny_store: Path, data: Any, seed: int, changes: list[Change], packed: bool, zarr: bool
) -> None:
    usual = forecasts(tiny_store, seed)
    names = {str(name): str(name) for name in [*TARGET_VARIABLES, *usual.dims]}
    form = Form(usual.copy(deep=True), list(TARGET_VARIABLES), names)
    for change in changes:
        change(form, data.draw)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for day in range(data.draw(st.integers(1, 2))):
            axis = form.names["init_time"]
            part = form.dataset.drop_encoding()
            if day or data.draw(st.booleans()):
                part = part.isel({axis: [day]})
            each = Form(part, form.variables, form.names)
            if packed:
                pack(each, data.draw)
                form.rounding = max(form.rounding, each.rounding)
            paths.append(Path(folder, f"{day}.zarr" if zarr else f"{day}.nc"))
            if zarr:
                part.to_zarr(paths[-1], zarr_format=2, encoding=each.encoding)
            else:
                part.to_netcdf(paths[-1], encoding=each.encoding)
        if len(paths) == 2 and xr.open_dataset(paths[0]).sizes[axis] == 2:
            with pytest.raises(ValueError, match="has it too"):
                open_model(paths, open_store(tiny_store), TARGET_VARIABLES, HORIZONS_H)
            return
        other = open_model(paths, open_store(tiny_store), TARGET_VARIABLES, HORIZONS_H)
        for init in other.init_times:
            stacked = np.stack([usual[n].sel(init_time=init).values for n in TARGET_VARIABLES], axis=1)
            found = other.at(np.array([init]))[0]
            np.testing.assert_allclose(found, stacked, rtol=3e-6, atol=form.rounding * 400)
