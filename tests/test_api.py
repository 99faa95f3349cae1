"""The public names of aqtopo: loading, forecasts, scores and training from Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import aqtopo
from aqtopo.data import open_store
from aqtopo.inference.export import export_model
from aqtopo.inference.forecast import forecast, parse_init_time
from aqtopo.inference.load import load_run
from aqtopo.model import build_model
from tests.conftest import SaveUntrained, TinyConfig

INIT = "2018-01-03T00"
Change = Callable[[xr.Dataset], xr.Dataset]
HISTORY = {"history_hours": [6, 12], "history_variables": ["pm25", "temp"]}


@pytest.fixture
def run_dir(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> Path:
    return save_untrained(tiny_config(data=HISTORY))


@pytest.fixture
def model(run_dir: Path) -> aqtopo.Model:
    return aqtopo.load(run_dir)


@pytest.fixture
def weather_model(tiny_config: TinyConfig, save_untrained: SaveUntrained, tmp_path: Path) -> aqtopo.Model:
    run_dir = {"run_dir": str(tmp_path / "with_weather")}
    return aqtopo.load(
        save_untrained(tiny_config(data={"weather_at_horizons": ["u", "temp"]}, training=run_dir))
    )


@pytest.fixture
def fields(tiny_store: Path) -> xr.Dataset:
    return aqtopo.open_dataset(tiny_store).sel(time=slice("2018-01-01", INIT))


def test_public_names_are_imported_on_use() -> None:
    code = (
        "import sys, aqtopo; assert not {'torch', 'xarray', 'pydantic'} & set(sys.modules); "
        "assert aqtopo.__version__; assert set(aqtopo.__all__) <= set(dir(aqtopo)); "
        "[getattr(aqtopo, name) for name in aqtopo.__all__]; "
        "assert not {'deepspeed', 'matplotlib', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'forecasts'"):
        _ = aqtopo.forecasts
    assert (Path(aqtopo.__file__).parent / "py.typed").is_file()


def test_every_public_name_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    assert not [name for name in aqtopo.__all__ if f"aqtopo.{name}" not in page and f"`{name}`" not in page]


def test_model_loads_from_a_run_a_state_and_an_export(run_dir: Path, tmp_path: Path) -> None:
    export_model(run_dir, "best", tmp_path / "model", None)
    run = load_run(run_dir)
    for path in (run_dir, str(run_dir), run.tag.folder(run_dir), tmp_path / "model"):
        model = aqtopo.load(path)
        assert model.run.tag == run.tag
        assert model.config == run.config
        torch.testing.assert_close(model.module.pos_embed, run.model.pos_embed, rtol=0, atol=0)
    assert "pm25, pm10, so2, no2, co, o3 at 12, 24, 48, 96 h on 8 x 16 cells" in repr(model)


@pytest.mark.parametrize(
    "time",
    [
        INIT,
        datetime(2018, 1, 3),
        datetime(2018, 1, 3, 8, tzinfo=timezone(timedelta(hours=8))),
        pd.Timestamp(INIT, tz=UTC),
        np.datetime64("2018-01-03"),
        np.datetime64("2018-01-03T00", "ns"),
    ],
)
def test_initial_time_may_be_text_or_a_time(time: str | datetime | np.datetime64) -> None:
    assert parse_init_time(time) == np.datetime64(INIT, "h")


def test_forecast_is_that_of_the_command(model: aqtopo.Model) -> None:
    expected = forecast(model.run, np.datetime64(INIT, "h"))
    xr.testing.assert_equal(model.forecast(INIT), expected)


def test_several_initial_times_are_a_dimension(model: aqtopo.Model, tmp_path: Path) -> None:
    several = model.forecast([INIT, datetime(2018, 1, 4)])
    assert several["pm25"].dims == ("init_time", "lead_time", "lat", "lon")
    assert several["time"].dims == ("init_time", "lead_time")
    for init in (INIT, "2018-01-04T00"):
        xr.testing.assert_equal(several.sel(init_time=init), model.forecast(init))
    assert "from 2 initial times" in several.attrs["title"]
    assert f"of {several['pm25'].size} values" in several["pm25"].attrs["comment"]
    several.to_netcdf(tmp_path / "several.nc")
    with xr.open_dataset(tmp_path / "several.nc", decode_timedelta=False) as read:
        xr.testing.assert_allclose(read, several)
    with pytest.raises(ValueError, match="no initial time"):
        model.forecast([])


def test_own_fields_give_the_forecast_of_the_store(model: aqtopo.Model, fields: xr.Dataset) -> None:
    xr.testing.assert_equal(model.forecast(fields), model.forecast(INIT))
    earlier = model.forecast(fields, init_time="2018-01-02T06")
    xr.testing.assert_equal(earlier, model.forecast("2018-01-02T06"))


def test_own_fields_may_have_other_axes_names_units_and_more_cells(
    model: aqtopo.Model, fields: xr.Dataset
) -> None:
    own = fields.rename(temp="t2m", lat="latitude", lon="longitude", psfc="sp")
    own["t2m"] = (own["t2m"] - 273.15).assign_attrs(units="degC", standard_name="air_temperature")
    own["co"] = (own["co"] / 1000).assign_attrs(units="mg m-3")
    own["sp"] = (own["sp"] / 100).assign_attrs(units="hPa")
    own = own.drop_vars(["elevation", "population", "mask"]).sortby("latitude", ascending=False)
    own = own.assign_coords(longitude=own["longitude"] - 360.0).isel(time=[-1, -13, -7])
    expected = model.forecast(INIT)
    xr.testing.assert_allclose(model.forecast(own), expected, rtol=1e-4)
    more = own.pad(latitude=(1, 0), mode="reflect")
    more["latitude"] = np.concatenate([[52.0], own["latitude"].values])
    xr.testing.assert_allclose(model.forecast(more), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_sel(time="2018-01-02T18"), "has no fields at 2018-01-02T18"),
        (lambda d: d.drop_vars("temp"), r"has no temp \(air temperature\)"),
        (lambda d: d.isel(lat=slice(1, None)), "another grid than the model's: 8 latitudes from 20 to 48"),
        (lambda d: d.assign(temp=d["temp"].assign_attrs(units="m")), "temp in units that cannot be used"),
        (lambda d: d.assign(temp=d["temp"].isel(time=-1, drop=True)), r"temp on \('lat', 'lon'\)"),
        (lambda d: d.assign(pm25=d["pm25"] * np.nan), "has no value of pm25"),
        (lambda d: d.isel(time=-1).drop_vars("time"), "has no time axis"),
    ],
)
def test_unusable_fields_are_refused(
    model: aqtopo.Model, fields: xr.Dataset, change: Change, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.forecast(change(fields))


def test_export_forecasts_from_fields_without_a_store(
    model: aqtopo.Model, fields: xr.Dataset, tmp_path: Path
) -> None:
    export_model(model.run.run_dir, "best", tmp_path / "model", None)
    path = tmp_path / "model" / "config.json"
    card = json.loads(path.read_text())
    card["config"]["data"]["store"] = "elsewhere.zarr"
    path.write_text(json.dumps(card))
    exported = aqtopo.load(tmp_path / "model")
    xr.testing.assert_equal(exported.forecast(fields), model.forecast(INIT))
    pd.testing.assert_frame_equal(exported.needs(), model.needs())
    for call in (lambda: exported.forecast(INIT), exported.evaluate):
        with pytest.raises(ValueError, match=r"no data store at elsewhere\.zarr.*store="):
            call()
    again = aqtopo.load(tmp_path / "model", store=model.config.data.store)
    xr.testing.assert_equal(again.forecast(INIT), model.forecast(INIT))


def test_needs_lists_hours_and_channels(model: aqtopo.Model, weather_model: aqtopo.Model) -> None:
    needs = model.needs(INIT)
    assert set(needs["lead_time"]) == {-12, -6, 0}
    assert set(needs.loc[needs["lead_time"] == -6, "channel"]) == {"pm25", "temp"}
    assert needs["time"].iloc[0] == pd.Timestamp("2018-01-02T12")
    assert {"u", "v", "pm10"} <= set(needs.loc[needs["lead_time"] == 0, "channel"])
    ahead = weather_model.needs().query("source == 'weather'")
    assert set(ahead["lead_time"]) == {12, 24, 48, 96}
    assert set(ahead["units"]) == {"m s-1", "K"}


def test_weather_is_perfect_a_file_or_a_dataset(
    weather_model: aqtopo.Model, tiny_store: Path, tmp_path: Path
) -> None:
    hourly = aqtopo.open_dataset(tiny_store)
    expected = weather_model.forecast(INIT, weather="perfect")
    leads = [12, 24, 48, 96]
    times = np.datetime64(INIT, "ns") + np.array(leads, "timedelta64[h]")
    ahead = hourly[["u", "temp"]].sel(time=times).rename(time="lead_time").load()
    ahead = ahead.assign_coords(lead_time=("lead_time", leads, {"units": "hours"}))
    ahead = ahead.assign_coords(init_time=np.datetime64(INIT, "ns"))
    ahead.to_netcdf(tmp_path / "weather.nc")
    for weather in (ahead, tmp_path / "weather.nc", [str(tmp_path / "weather.nc")]):
        xr.testing.assert_equal(weather_model.forecast(INIT, weather=weather), expected)
    fields = hourly.sel(time=slice(INIT, "2018-01-08"))
    xr.testing.assert_equal(weather_model.forecast(fields, "perfect", init_time=INIT), expected)
    with pytest.raises(ValueError, match="needs the weather to come"):
        weather_model.forecast(INIT)


def test_scores_are_a_tidy_table(model: aqtopo.Model) -> None:
    scores = model.evaluate(every_hours=72)
    table = scores.to_dataframe().reset_index()
    assert {"pollutant", "lead_time", "score", "forecast", "value", "units", "count"} == set(table)
    assert len(table) == 6 * 4 * 4 * 5
    assert set(table["score"]) == {"rmse", "mae", "bias", "acc"}
    model_rmse = scores["value"].sel(score="rmse", forecast="model")
    assert bool((model_rmse > 0).all())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"split": "train"}, "split = 'train': .*`validation` or `test`"),
        ({"weighting": "cells"}, "weighting = 'cells': .*`none` or `area`"),
        ({"every_hours": 0}, "every_hours = 0: .*at least 1"),
    ],
)
def test_unknown_scores_are_refused(model: aqtopo.Model, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.evaluate(**asked)


def test_store_is_a_cf_dataset(tiny_store: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    dataset = aqtopo.open_dataset(str(tiny_store))
    assert dataset["pm25"].chunks is not None
    assert dataset["temp"].attrs == {
        "standard_name": "air_temperature",
        "long_name": "air temperature",
        "units": "K",
    }
    assert dataset["mask"].attrs["flag_meanings"] == "left_out counted"
    dataset.isel(time=slice(30)).to_netcdf(tmp_path / "store.nc")
    assert not [str(warning.message) for warning in recwarn]
    with xr.open_dataset(tmp_path / "store.nc") as read:
        xr.testing.assert_equal(read, dataset.isel(time=slice(30)).load())
    dataset.isel(time=slice(30)).to_zarr(tmp_path / "copy.zarr", zarr_format=3, consolidated=False)


def test_plot_of_a_field_has_name_and_units(tiny_store: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    field = aqtopo.open_dataset(tiny_store)["pm25"].isel(time=0)
    assert field.plot().colorbar.ax.get_ylabel().split() == ["PM2.5", "[ug", "m-3]"]
    pyplot.close("all")


def test_run_works_from_any_folder(
    tiny_store: Path,
    tiny_config: TinyConfig,
    save_untrained: SaveUntrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        folder.mkdir()
    (project / "data.zarr").symlink_to(tiny_store)
    monkeypatch.chdir(project)
    save_untrained(tiny_config(data={"store": "data.zarr"}, training={"run_dir": "runs/first"}))
    expected = aqtopo.load("runs/first").forecast(INIT)
    monkeypatch.chdir(elsewhere)
    xr.testing.assert_equal(aqtopo.load(project / "runs/first").forecast(INIT), expected)
    moved = (project / "runs/first").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"no data store at data\.zarr, with which .*store="):
        aqtopo.load(moved)
    xr.testing.assert_equal(aqtopo.load(moved, store=tiny_store).forecast(INIT), expected)
    (moved / "run.json").write_text(
        json.dumps({"started": "2026-01-01T00:00:00+00:00", "versions": {}, "folder": str(project)})
    )
    xr.testing.assert_equal(aqtopo.load(moved).forecast(INIT), expected)


def test_module_of_other_code_is_exported(
    tiny_config: TinyConfig, tiny_store: Path, fields: xr.Dataset, tmp_path: Path
) -> None:
    config, store = tiny_config(), open_store(tiny_store)
    module = build_model(config, aqtopo.Terrain(store.static["elevation"], store.lat, store.lon)).double()
    card = aqtopo.export(module, tmp_path / "model", config=config)
    assert (card.tag, card.state) == ("module", None)
    model = aqtopo.load(tmp_path / "model")
    forecast = model.forecast(fields)
    assert forecast.attrs["tag"] == "module"
    assert model.evaluate(every_hours=120).attrs["tag"] == "module"
    torch.testing.assert_close(model.module.pos_embed, module.pos_embed.float(), rtol=0, atol=0)
    deeper, shallower = tiny_config(model={"depth": 3}), tiny_config(model={"depth": 1})
    wider = tiny_config(model={"dim": 48})
    for given, settings, message in (
        (
            module,
            {"config": deeper},
            r"tiny: 1\d tensor\(s\) missing \(blocks\.2\.\S+, .* and \d+ more\)\. Give",
        ),
        (module, {"config": shallower}, r"tiny: 1\d tensor\(s\) unexpected \(blocks\.1\."),
        (module, {"config": wider}, r"shape \(\S+ \[[\d, ]+\] instead of \[[\d, ]*48[\d, ]*\], "),
        (module, {}, "cannot be exported with config = None"),
        (torch.nn.Linear(1, 1), {"config": config}, "class Linear cannot be exported"),
        (model, {}, "is an exported model"),
        (model, {"config": config}, "are for a module"),
    ):
        with pytest.raises(ValueError, match=message):
            aqtopo.export(given, tmp_path / "other", **settings)
    assert not (tmp_path / "other").exists()


def test_export_of_a_run_loads_again(model: aqtopo.Model, tmp_path: Path) -> None:
    aqtopo.export(model, tmp_path / "one")
    aqtopo.export(str(model.run.run_dir), str(tmp_path / "two"))
    for name in ("one", "two"):
        xr.testing.assert_equal(aqtopo.load(tmp_path / name).forecast(INIT), model.forecast(INIT))


@pytest.mark.slow
def test_training_in_this_process_can_be_repeated(tiny_config: TinyConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(tiny_config().to_json(), encoding="utf-8")
    environment = dict(os.environ)
    for name in ("one", "two"):
        config = aqtopo.load_config(
            path, [f"training.run_dir={tmp_path / name}", "training.epochs=1", "training.validate_every=24"]
        )
        run_dir = aqtopo.train(config)
        assert dict(os.environ) == environment
        assert run_dir == tmp_path / name
        record = json.loads((run_dir / "run.json").read_text())
        assert record["folder"] == str(Path.cwd())
        assert aqtopo.load(run_dir).forecast(INIT)["pm25"].notnull().all()
