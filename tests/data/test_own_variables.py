"""Variables that CAQRA lacks, from `write_store` to the report, by the commands alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from aqtopo.data import describe_variable, open_store, write_statistics, write_store
from aqtopo.evaluation.results import read_score_file
from aqtopo.report.text import pretty_units
from aqtopo.variables import Variable

WIDE = {**os.environ, "COLUMNS": "160"}
GRID, YEARS, DAYS = (16, 32), (2016, 2017, 2018), 8
HOURLY = ("u", "v", "temp", "pm25", "blh", "nh3", "hcho")
STATIC = ("elevation", "forest", "lat2d", "lon2d", "mask")
TARGETS = ("nh3", "pm25", "hcho")
LEVELS = {
    "u": (0.0, 5.0),
    "v": (0.0, 5.0),
    "temp": (280.0, 10.0),
    "pm25": (40.0, 15.0),
    "blh": (800.0, 300.0),  # m, in the source in km
    "nh3": (8.0, 3.0),  # ug m-3, in the source in kg m-3
    "hcho": (1.2e16, 4e15),  # cm-2: larger than what would be a fill value elsewhere
}
NH3 = Variable(
    name="nh3",
    long_name="ammonia",
    standard_name="mass_concentration_of_ammonia_in_air",
    units="ug m-3",
    valid_range=(0.0, 500.0),
    pollutant=True,
)


def described() -> list[Variable]:
    """Descriptions: one by hand, one from CF attributes, one completed."""
    cf = {"long_name": "boundary-layer height", "standard_name": "atmosphere_boundary_layer_thickness"}
    blh = xr.DataArray(0.0, name="blh", attrs={**cf, "units": "m", "valid_min": 0.0, "valid_max": 6000.0})
    column = xr.DataArray(0.0, name="hcho", attrs={"long_name": "[column] of HCHO", "units": "molec cm-2"})
    hcho = describe_variable(column, valid_range=(0.0, 1e17), pollutant=True)
    return [NH3, describe_variable(blh), hcho]


def dataset() -> xr.Dataset:
    """Waves that travel over the grid, in the units of their sources; the forest is described in place."""
    rng = np.random.default_rng(0)
    lat, lon = np.linspace(20.0, 48.0, GRID[0]), np.linspace(74.0, 134.0, GRID[1])
    starts = [np.datetime64(f"{year}-01-01", "h") for year in YEARS]
    times = np.concatenate([start + np.arange(24 * DAYS) for start in starts])
    hours = np.arange(times.size)[:, None, None]
    y, x = np.arange(GRID[0])[:, None], np.arange(GRID[1])
    fields = []
    for name in HOURLY:
        mean, spread = LEVELS[name]
        a, b, c, phase = rng.uniform(0.05, 0.3, 4)
        fields.append(mean + spread * np.sin(a * hours + 2 * b * y + c * x + 20 * phase))
    lat2d, lon2d = np.meshgrid(lat, lon, indexing="ij")
    ridge = 200 + 3000 * np.exp(-(((lon2d - 100.0) / 6.0) ** 2))
    static = {"elevation": ridge, "forest": 50 + lat2d, "lat2d": lat2d, "lon2d": lon2d}
    static["mask"] = np.ones(GRID)
    scale = np.array([{"blh": 1e-3, "nh3": 1e-9}.get(name, 1.0) for name in HOURLY])
    forest = {"long_name": "forest", "units": "%", "valid_range": [0.0, 100.0]}
    return xr.Dataset(
        {
            "fields": (
                ("time", "channel", "lat", "lon"),
                np.stack(fields, axis=1) * scale[:, None, None],
                {"channel_units": {"blh": "km", "nh3": "kg m**-3"}},
            ),
            "static": (
                ("static_channel", "lat", "lon"),
                np.stack([static[name] for name in STATIC]),
                {f"channel_{key}": {"forest": value} for key, value in forest.items()},
            ),
        },
        coords={
            "time": times.astype("datetime64[ns]"),
            "channel": list(HOURLY),
            "lat": lat,
            "lon": lon,
            "static_channel": list(STATIC),
        },
        attrs={"source": "waves made for a test"},
    )


def configuration(store: Path, run_dir: Path) -> dict[str, Any]:
    return {
        "name": "own",
        "data": {
            "store": str(store),
            "grid": list(GRID),
            "variables": [*HOURLY, "elevation", "forest"],
            "history_hours": [6],
            "history_variables": ["nh3", "blh"],
            "targets": list(TARGETS),
            "horizons": [12, 24],
            "train_years": [2016],
            "validation_years": [2017],
            "test_years": [2018],
            "time_stride_hours": 6,
            "validation_stride_hours": 12,
            "test_stride_hours": 12,
            "workers": 0,
        },
        "model": {"patch": 4, "dim": 32, "depth": 2, "heads": 2, "regions": [2, 2], "prediction": "tendency"},
        "optimizer": {"base_lr": 1e-3},
        "training": {
            "run_dir": str(run_dir),
            "epochs": 1,
            "nodes": 1,
            "ranks_per_node": 1,
            "validate_every": 4,
        },
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 2},
        },
    }


def aqtopo(*arguments: object) -> str:
    command = [sys.executable, "-m", "aqtopo", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=WIDE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def observations(path: Path) -> Path:
    times = pd.date_range("2018-01-01", periods=24 * DAYS, freq="h").strftime("%Y-%m-%dT%H")
    rows = [
        f"s{n},{lat},{lon},{time},nh3,{7.0 + n}"
        for n, (lat, lon) in enumerate([(30.0, 90.0), (40.0, 120.0)])
        for time in times
    ]
    path.write_text("\n".join(["id,lat,lon,time,pollutant,value", *rows]), encoding="utf-8")
    return path


@pytest.mark.slow
def test_variables_of_ones_own_go_from_the_store_to_the_report(tmp_path: Path) -> None:
    store, run_dir, config = tmp_path / "own.zarr", tmp_path / "run", tmp_path / "own.json"
    write_store(dataset(), store, variables=described())
    write_statistics(store, [2017])  # another run's
    aqtopo("data", "statistics", store, "--years", 2016)
    assert "boundary-layer height" in aqtopo("data", "info", store)
    assert json.loads(aqtopo("data", "check", store, "--json"))["faults"] == 0
    opened = open_store(store)
    assert opened.variables["forest"].units == "%"
    assert opened.mean["nh3"] == pytest.approx(8.0, rel=0.2)
    assert opened.mean["blh"] == pytest.approx(800.0, rel=0.2)

    config.write_text(json.dumps(configuration(store, run_dir)), encoding="utf-8")
    aqtopo("config", "validate", config)
    aqtopo("plan", config, "--gpu", "mi250x")
    aqtopo("train", config)

    aqtopo("forecast", run_dir, "--init", "2018-01-03T00", tmp_path / "run.nc")
    aqtopo("export", run_dir, tmp_path / "model")
    aqtopo("forecast", tmp_path / "model", "--init", "2018-01-03T00", tmp_path / "model.nc", "--store", store)
    with xr.open_dataset(tmp_path / "run.nc") as of_run, xr.open_dataset(tmp_path / "model.nc") as of_model:
        assert tuple(of_run.data_vars) == TARGETS
        assert of_run["nh3"].attrs["standard_name"] == NH3.standard_name
        assert of_run["hcho"].attrs["units"] == "molec cm-2"
        assert 4.0 < of_run["nh3"].mean() < 12.0
        for name in TARGETS:
            assert of_model[name].attrs == of_run[name].attrs
            np.testing.assert_array_equal(of_model[name], of_run[name])
        of_run.rename(nh3="ammonia").to_netcdf(tmp_path / "other.nc")  # found by its standard name

    csv = observations(tmp_path / "stations.csv")
    shown = aqtopo("evaluate", run_dir, "--stations", csv, "--detail", "exceedances", "--detail", "station")
    assert "[column] of HCHO" in shown
    assert "molec cm-2" in shown
    aqtopo("evaluate", run_dir, "--against", tmp_path / "other.nc", "--every", 24)
    content = read_score_file(run_dir)
    assert [entry.units for entry in content.scores] == ["ug m-3"] * 4 + ["molec cm-2"] * 2
    assert {record.pollutant for record in content.exceedances} == {"pm25"}
    assert content.described["nh3"] == NH3
    against = json.loads((run_dir / "scores_against_other.json").read_text(encoding="utf-8"))
    nh3 = against["scores"][0]
    assert nh3["other"] == nh3["model"]

    aqtopo("report", run_dir)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    for text in ("Ammonia", "[column] of HCHO", pretty_units("molec cm-2")):
        assert text in page
