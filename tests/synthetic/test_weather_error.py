from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from aqtopo.cli.main import app
from aqtopo.data import open_store
from aqtopo.data.forecasts import open_forecasts
from aqtopo.inference.forecast import read_hours
from aqtopo.synthetic.weather_error import WEATHER, error_share, weather_forecasts

LEADS = (12, 24, 48, 96)


def errors(store_path: Path, made: xr.Dataset) -> np.ndarray:
    """Errors (T, K, A, H, W)."""
    store = open_store(store_path)
    truth = [read_hours(store, WEATHER, times.astype("datetime64[h]")) for times in made["time"].values]
    return np.stack([made[name].values for name in WEATHER], 2) - np.stack(truth)


def test_the_error_grows_with_lead_time_in_every_variable(tiny_store: Path) -> None:
    made = weather_forecasts(open_store(tiny_store), [2018], 6, LEADS, seed=3)
    assert made["u"].dims == ("init_time", "lead_time", "lat", "lon")
    assert made.sizes["init_time"] == 24
    rmse = np.sqrt(np.square(errors(tiny_store, made)).mean((0, 3, 4)))
    assert (np.diff(rmse, axis=0) > 0).all()
    spread = np.array([open_store(tiny_store).std[name] for name in WEATHER])
    assert (rmse[0] < 0.25 * spread).all()
    assert (rmse[-1] > 0.3 * spread).all()
    assert error_share([0])[0] == 0


def test_an_error_depends_on_seed_and_initial_time_only(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    made, again, other = (weather_forecasts(store, [2018], 24, LEADS, seed) for seed in (3, 3, 4))
    xr.testing.assert_identical(made, again)
    assert abs(made["u"] - other["u"]).max() > 0.1
    often = weather_forecasts(store, [2017, 2018], 12, LEADS, 3)
    xr.testing.assert_equal(made, often.sel(init_time=made["init_time"]))


@pytest.mark.parametrize("name", ["weather.nc", "weather.zarr"])
def test_the_command_writes_what_the_door_reads(tiny_store: Path, tmp_path: Path, name: str) -> None:
    arguments = ["--years", "2018", "--weather-error", str(tiny_store), "--every", "48", "--seed", "3"]
    ended = CliRunner().invoke(app, ["synth", str(tmp_path / name), *arguments], catch_exceptions=False)
    assert "from 3 initial times, at 12, 24, 48, 96 h, simulated with seed 3" in ended.output
    read = open_forecasts(tmp_path / name, open_store(tiny_store), WEATHER, LEADS)
    made = weather_forecasts(open_store(tiny_store), [2018], 48, LEADS, 3)
    expected = np.stack([made[name].values for name in WEATHER], 2)
    np.testing.assert_allclose(read.at(read.init_times), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--years", "2019", "--weather-error", "STORE"], "has no hour of the years 2019"),
        (["--years", "2018", "--weather-error", "gone.zarr"], "no data store at gone.zarr"),
        (["--years", "2018", "--weather-error", "STORE", "--grid", "4x6"], "--grid has no use with"),
        (["--years", "2018", "--weather-error", "STORE", "--world", "flat"], "--world has no use with"),
        (["--years", "2018", "--every", "6"], "--every needs --weather-error"),
    ],
)
def test_bad_input_is_refused(tiny_store: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [str(tiny_store) if argument == "STORE" else argument for argument in arguments]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["synth", str(tmp_path / "out.nc"), *given], catch_exceptions=False)
