"""The weather to come: perfect or from a file, in forecasts and in scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from aqtopo.cli.main import main
from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.batch import BatchReader
from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.results import station_frame, write_results
from aqtopo.evaluation.tables import detail_table, score_table
from aqtopo.inference.export import export_model
from aqtopo.inference.forecast import forecast
from aqtopo.inference.forecast_file import write_forecast
from aqtopo.inference.load import LoadedRun, load_model, load_run
from aqtopo.inference.weather import needs, open_weather
from aqtopo.variables import HORIZONS_H
from tests.data.forecast_files import perfect_forecasts

NAMES = ("rh", "u")
INITS = np.arange("2018-01-01", "2018-01-07", dtype="datetime64[D]").astype("datetime64[h]")
"""The test times of the tiny run."""


@pytest.fixture
def run_dir(tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]) -> Path:
    data = {"weather_at_horizons": list(NAMES), "forcings": ["insolation"]}
    return save_untrained(tiny_config(data=data))


@pytest.fixture
def run(run_dir: Path) -> LoadedRun:
    return load_run(run_dir)


@pytest.fixture
def weather(tiny_store: Path) -> xr.Dataset:
    """The store's own weather at the valid times of `INITS`, as `aqtopo forecast` writes forecasts."""
    return perfect_forecasts(open_store(tiny_store), NAMES, INITS)


@pytest.fixture
def written(weather: xr.Dataset, tmp_path: Path) -> Callable[..., Path]:
    def write(change: Callable[[xr.Dataset], xr.Dataset] = lambda d: d, name: str = "gfs.nc") -> Path:
        write_forecast(change(weather), tmp_path / name)
        return tmp_path / name

    return write


def fails(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a command that must end with exit code 2; return its message in one line."""
    monkeypatch.setattr("sys.argv", ["aqtopo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_an_exported_model_needs_the_same_weather(run_dir: Path, run: LoadedRun, tmp_path: Path) -> None:
    card = export_model(run_dir, "last", tmp_path / "model", None)
    assert card.inputs == run.config.inputs
    assert card.inputs[15:] == ("insolation", "rh_ahead", "u_ahead", "insolation_ahead")
    exported = load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="needs the weather to come"):
        forecast(exported, INITS[1])
    xr.testing.assert_equal(forecast(exported, INITS[1], "perfect"), forecast(run, INITS[1], "perfect"))


@pytest.mark.parametrize("name", ["gfs.nc", "gfs.zarr"])
def test_a_file_with_the_stores_weather_gives_the_perfect_forecast(
    run: LoadedRun, written: Callable[..., Path], name: str
) -> None:
    given = open_weather(written(name=name), run.store, run.config.data)
    perfect, other = forecast(run, INITS[1], "perfect"), forecast(run, INITS[1], given)
    assert perfect.attrs["weather"] == "perfect weather"
    assert other.attrs["weather"] == "weather forecast gfs"
    xr.testing.assert_allclose(perfect, other, rtol=1e-5)
    wrong = open_weather(
        written(lambda d: d.assign(u=d["u"] + 5.0), "wrong.zarr"), run.store, run.config.data
    )
    assert abs(forecast(run, INITS[1], wrong)["o3"] - perfect["o3"]).max() > 1e-3


def test_other_units_and_axes_are_converted(run: LoadedRun, written: Callable[..., Path]) -> None:
    def changed(d: xr.Dataset) -> xr.Dataset:
        turned = d.isel(lat=slice(None, None, -1), lead_time=slice(None, None, -1))
        rh = (turned["rh"] / 100).assign_attrs(turned["rh"].attrs | {"units": "1"})
        return turned.assign(rh=rh).rename(u="u10")

    plain, turned = (
        open_weather(path, run.store, run.config.data) for path in (written(), written(changed, "turned.nc"))
    )
    np.testing.assert_allclose(turned.at(INITS[:2]), plain.at(INITS[:2]), rtol=1e-5)


def test_scores_with_the_stores_weather_from_a_file_are_those_with_perfect_weather(
    run: LoadedRun, written: Callable[..., Path], tmp_path: Path
) -> None:
    given = open_weather(written(), run.store, run.config.data)
    perfect, other = evaluate(run), evaluate(run, options=EvalOptions(weather=given))
    for name in ("model", "linear_same"):
        one, two = (done.scores["rmse"].sel(forecast=name) for done in (perfect, other))
        np.testing.assert_allclose(one, two, rtol=1e-5)
    assert "with 48 predictors" in perfect.scores.attrs["linear_same"]
    for done, words, stem in (
        (perfect, "perfect weather", "scores"),
        (other, "weather forecast gfs", "scores_weather_gfs"),
    ):
        (tmp_path / stem).mkdir()
        names = [path.name for path in write_results(done, tmp_path / stem)]
        assert names == [f"{stem}.json", f"{stem}.csv", f"{stem}.zarr"]
        assert json.loads((tmp_path / stem / names[0]).read_text(encoding="utf-8"))["weather"] == words
        assert set(pd.read_csv(tmp_path / stem / names[1])["weather"]) == {words}
        for table in (score_table(done.scores), detail_table(done, "season"), detail_table(done, "spectra")):
            assert str(getattr(table, "title", "")).endswith(f"; {words}")
        by_station = (
            done.strata["area"]
            .rename(area="station")
            .assign_coords(lat=("station", np.zeros(done.strata["area"].sizes["area"])), lon=0.0)
        )
        assert set(station_frame(by_station)["weather"]) == {words}


def test_values_outside_the_valid_range_are_kept_counted_and_reported(
    run: LoadedRun,
    run_dir: Path,
    written: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def humid(d: xr.Dataset) -> xr.Dataset:
        d["rh"][:, 1, 2, 3:5] = 112.0
        return d

    path = written(humid)
    given = open_weather(path, run.store, run.config.data)
    scores = evaluate(run, options=EvalOptions(weather=given)).scores
    assert scores.attrs["kept_values"] == {"gfs": {"rh": 2 * scores.attrs["initialisations"]}}
    arguments = ["forecast", run_dir, tmp_path / "out.nc", "--init", "2018-01-02", "--weather", path]
    monkeypatch.setattr("sys.argv", ["aqtopo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "weather forecast gfs (outside the valid range, kept: 2 of rh)" in capsys.readouterr().out


def test_wrong_weather_changes_the_model_and_the_regression_alike(
    run: LoadedRun, written: Callable[..., Path]
) -> None:
    given = open_weather(written(lambda d: d.assign(u=d["u"] * 0.0 + 30.0)), run.store, run.config.data)
    perfect, other = evaluate(run).scores, evaluate(run, options=EvalOptions(weather=given)).scores
    for name, same in (("model", False), ("linear_same", False), ("linear", True), ("persistence", True)):
        one, two = (scores["rmse"].sel(forecast=name) for scores in (perfect, other))
        assert bool((one == two).all()) == same, name


def test_needs_are_the_hours_and_variables_that_the_reader_takes(
    tiny_config: Callable[..., RunConfig], tiny_store: Path
) -> None:
    data = {"history_hours": [6, 24], "history_variables": ["o3"], "weather_at_horizons": ["u", "rh"]}
    data |= {"variables": ["elevation", "u", "v", "o3"], "targets": ["o3"]}
    config, store = tiny_config(data=data), open_store(tiny_store)
    fields, weather = needs(store, config.data, INITS[1])
    assert [(need.lead_h, need.variables) for need in fields] == [
        (-24, ("o3",)),
        (-6, ("o3",)),
        (0, ("u", "v", "o3")),
    ]
    assert [(need.time - INITS[1]).astype(int) for need in weather] == list(HORIZONS_H)
    assert {need.variables for need in weather} == {("u", "rh")}
    needed = {need.time for need in (*fields, *weather)}
    reader = BatchReader(store, config)
    seen: set[np.datetime64] = set()
    read = type(store).read_span

    def noted(self: Any, first: int, last: int) -> Any:
        seen.update(store.times[first:last])
        return read(self, first, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "read_span", noted)
        reader.batch(INITS[1:2], np.array([HORIZONS_H]), np.zeros(1, dtype=np.int64))
    assert seen == needed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("rh"), "has no rh"),
        (lambda d: d.isel(lead_time=[0, 1, 3]), "has no lead time of 48 h"),
        (lambda d: d.isel(init_time=[0, 2]), "has no weather from the initial time 2018-01-02T00"),
        (
            lambda d: d.assign(u=d["u"].where(d["lead_time"] != 24)),
            "has no value of u in 128 of 128 cells 24 h after 2018-01-02T00",
        ),
        (lambda d: d.assign(rh=d["rh"].assign_attrs(units="K")), "has rh in units that cannot be used"),
        (lambda d: d.assign(u=d["u"] * 0 - 9999), "u = -9999"),
        (
            lambda d: d.assign(rh=(d["rh"] / 100).assign_attrs(units="%")),
            "outside 2 to 100 %: it is in other units than its `units` '%'",
        ),
        (lambda d: d.isel(lon=slice(1, None)), "is on another grid"),
    ],
)
def test_weather_with_gaps_or_other_hours_is_refused(
    run_dir: Path,
    written: Callable[..., Path],
    tmp_path: Path,
    change: Callable[[xr.Dataset], xr.Dataset],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["forecast", run_dir, tmp_path / "out.nc", "--init", "2018-01-02", "--weather"]
    assert message in fails([*arguments, written(change)], monkeypatch, capsys)
    assert not (tmp_path / "out.nc").exists()


def test_weather_must_be_given_for_a_forecast_and_perfect_weather_must_be_stored(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["forecast", run_dir, tmp_path / "out.nc", "--init"]
    assert "needs the weather to come (rh, u at 12, 24, 48, 96 h)" in fails(
        [*arguments, "2018-01-02"], monkeypatch, capsys
    )
    message = fails([*arguments, "2018-01-09", "--weather", "perfect"], monkeypatch, capsys)
    assert "has no fields at 2018-01-11T00, 2018-01-13T00, so no perfect weather" in message
    assert "no output is named" in fails(["forecast", run_dir, "--init", "2018-01-02"], monkeypatch, capsys)


def test_a_forecast_beyond_the_end_of_the_store_takes_its_weather_from_the_file(
    run: LoadedRun, written: Callable[..., Path]
) -> None:
    late = written(
        lambda d: d.assign_coords(init_time=d["init_time"] + np.timedelta64(8, "D")).drop_vars("time")
    )
    given = open_weather(late, run.store, run.config.data)
    assert np.isfinite(forecast(run, INITS[1] + 8 * 24, given)["pm25"]).all()


def test_weather_for_a_run_that_reads_none_is_refused(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["forecast", untrained_run, tmp_path / "out.nc", "--init", "2018-01-02"],
        ["evaluate", untrained_run],
    ):
        message = fails([*command, "--weather", "perfect"], monkeypatch, capsys)
        assert "reads no weather to come. Leave --weather out." in message


def test_the_scores_need_the_weather_of_every_start(
    run_dir: Path,
    written: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(lambda d: d.isel(init_time=slice(2, None)))
    message = fails(["evaluate", run_dir, "--weather", path], monkeypatch, capsys)
    assert "has no weather from the initial time 2018-01-01T00, and lacks 2 of 6 initial times" in message
    message = fails(["evaluate", run_dir, "--weather", path, "--weather", "perfect"], monkeypatch, capsys)
    assert "--weather perfect cannot be combined" in message


def test_a_gap_in_the_weather_is_found_before_any_fit(
    run_dir: Path,
    written: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = np.datetime64(INITS[-1], "ns")
    path = written(lambda d: d.assign(u=d["u"].where((d["init_time"] != last) | (d["lead_time"] != 96))))
    message = fails(["evaluate", run_dir, "--weather", path], monkeypatch, capsys)
    assert f"has no value of u in 128 of 128 cells 96 h after {INITS[-1]}" in message
    assert "hours of climatology" not in message
    assert "regression" not in message


@pytest.mark.parametrize(
    ("options", "start", "last"),
    [
        (
            ["--init", "2018-01-09"],
            "  2018-01-09T00  initial time  u, v, temp",
            "  2018-01-13T00  lead_time  96  rh, u",
        ),
        ([], "  initial time  u, v, temp", "  lead_time  96  rh, u"),
    ],
    ids=["of an initial time", "of any"],
)
def test_the_command_lists_its_needs(
    options: list[str],
    start: str,
    last: str,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["aqtopo", "forecast", str(run_dir), "--needs", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith(start) for line in printed)
    assert last in printed
