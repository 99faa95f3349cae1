"""Linear baselines, against ridge regressions that numpy solves from the store's fields."""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import load_file, save_file

from aqtopo.config import DataConfig, RunConfig
from aqtopo.data import Store, open_store, write_statistics, write_store
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.linear import Linear, LinearBaseline, Predictors
from aqtopo.evaluation.points import FORECASTS
from aqtopo.evaluation.results import write_results
from aqtopo.evaluation.ridge import PENALTIES
from aqtopo.inference.load import load_run
from aqtopo.variables import DYNAMIC_VARIABLES, HORIZONS_H, TARGET_VARIABLES
from tests.conftest import TINY_GRID, make_tiny_dataset
from tests.distributed.test_evaluate import numbers, scores_of_two_ranks

INPUT_GAP, TARGET_GAP = (2, 5), (4, 9)
"""Cells that lack a wind, and carbon monoxide, at some hours of the training and the test year."""

GAP_HOURS = [f"{year}-01-{day}" for year in (2016, 2018) for day in ("02T03", "03T12", "05T20")]
SOME_FIELDS = Predictors(("pm25", "o3", "temp"), history=(("pm25", 3), ("u", 24)))
OWN_FIELDS = Predictors(DYNAMIC_VARIABLES)
WITH_WEATHER = Predictors(("pm25", "o3"), history=(("pm25", 3),), weather=(("u", 12), ("u", 96)))
TEST_TIMES = np.arange("2018-01-02T00", "2018-01-06T00", dtype="datetime64[h]")


@pytest.fixture(scope="module")
def noisy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store with noise, so that a penalty pays, and with missing values."""
    dataset, rng = make_tiny_dataset(), np.random.default_rng(1)
    fields = dataset["fields"]
    spread = fields.std(("time", "lat", "lon")).values[:, None, None]
    fields.values += 0.3 * spread * rng.standard_normal(fields.shape, np.float32)
    for channel, (row, column) in (("u", INPUT_GAP), ("co", TARGET_GAP)):
        cell = {"lat": fields["lat"][row], "lon": fields["lon"][column]}
        for hour in GAP_HOURS:
            fields.loc[{"channel": channel, "time": hour, **cell}] = np.nan
    path = tmp_path_factory.mktemp("noisy") / "noisy.zarr"
    write_store(dataset, path)
    write_statistics(path, [2016])
    return path


@pytest.fixture
def store(noisy_store: Path) -> Store:
    return open_store(noisy_store)


@pytest.fixture
def data(tiny_config: Callable[..., RunConfig], noisy_store: Path) -> DataConfig:
    return tiny_config(data={"store": str(noisy_store)}).data


@functools.cache
def normalised(path: str) -> xr.DataArray:
    """The hourly fields (time, channel, lat, lon) with mean 0 and standard deviation 1."""
    store = open_store(path)
    fields = xr.open_zarr(path, consolidated=False, chunks=None)["fields"].astype(np.float64)
    names = fields["channel"].values.tolist()
    mean, std = (
        xr.DataArray([table[name] for name in names], {"channel": names}) for table in (store.mean, store.std)
    )
    scaled: xr.DataArray = ((fields - mean) / std).load()
    return scaled


def design(store: Store, times: np.ndarray, predictors: Predictors) -> np.ndarray:
    """The predictors (T, P, H, W); 0, the mean, for missing values."""
    fields = normalised(store.path)
    at = {"time": times.astype("datetime64[ns]"), "channel": list(predictors.variables)}
    now = fields.sel(at).values
    hours = times.astype("datetime64[h]").astype(np.int64)
    angles = (hours / 24, 2 * hours / 24, hours / 24 / 365.2425)
    waves = [wave(2 * np.pi * angle) for angle in angles for wave in (np.cos, np.sin)]
    common = np.broadcast_to(
        np.stack([np.ones(times.size), *waves], 1)[:, :, None, None], (times.size, 7, *TINY_GRID)
    )
    others = [*((name, -lag) for name, lag in predictors.history), *predictors.weather]
    further = [
        fields.sel(time=(times + np.timedelta64(hours, "h")).astype("datetime64[ns]"), channel=[name]).values
        for name, hours in others
    ]
    return np.nan_to_num(
        np.concatenate([common, now, now * common[:, 1:2], now * common[:, 2:3], *further], 1)
    )


def outcomes(store: Store, times: np.ndarray) -> np.ndarray:
    """The targets (T, J, H, W) at all horizons, NaN where missing or masked."""
    fields = normalised(store.path).sel(channel=list(TARGET_VARIABLES))
    leads = [(times + np.timedelta64(hours, "h")).astype("datetime64[ns]") for hours in HORIZONS_H]
    values = np.concatenate([fields.sel(time=lead).values for lead in leads], 1)
    return np.where(store.static["mask"] > 0, values, np.nan)


def times_of(store: Store, year: int, lags: Sequence[int] = ()) -> np.ndarray:
    """The hours of a year whose targets and earlier fields are stored."""
    own = store.times[store.times.astype("datetime64[Y]") == np.datetime64(str(year))]
    needed = [np.timedelta64(hours, "h") for hours in (*HORIZONS_H, *(-lag for lag in lags))]
    return own[np.all([np.isin(own + step, store.times) for step in needed], axis=0)]


def ridge(inputs: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients (P, J) from inputs (T, P) and targets (T, J), over the times with all targets."""
    known = np.isfinite(targets).all(1)
    x, y = inputs[known], targets[known]
    weights = penalty * known.sum() * np.ones(x.shape[1])
    weights[0] = 0.0  # the constant
    return np.linalg.solve(x.T @ x + np.diag(weights), x.T @ y)


def expected_forecast(
    store: Store, predictors: Predictors, fit_times: np.ndarray, penalty: float, cell: tuple[int, int]
) -> np.ndarray:
    """The forecast (T, K, C) of a cell from `TEST_TIMES`, in physical units."""
    here = (..., *cell)
    inputs, targets = design(store, fit_times, predictors), outcomes(store, fit_times)
    coefficients = ridge(inputs[here], targets[here], penalty)
    values = design(store, TEST_TIMES, predictors)[here] @ coefficients
    mean, std = (np.array([table[name] for name in TARGET_VARIABLES]) for table in (store.mean, store.std))
    return values.reshape(TEST_TIMES.size, len(HORIZONS_H), -1) * std + mean


def assert_forecast(
    store: Store, data: DataConfig, fitted: Linear, expected: np.ndarray, cell: tuple[int, int]
) -> None:
    """Compare a cell's forecasts to 1e-4 of them, and of the standard deviation where they are near 0."""
    got = LinearBaseline(store, data, fitted.predictors).forecast(fitted, TEST_TIMES)[(..., *cell)]
    std = np.array([store.std[name] for name in TARGET_VARIABLES])
    np.testing.assert_array_less(np.abs(got - expected), 1e-4 * (np.abs(expected) + std))


@pytest.mark.parametrize(
    "predictors", [OWN_FIELDS, SOME_FIELDS, WITH_WEATHER], ids=["own", "history", "weather"]
)
@pytest.mark.parametrize("cell", [(0, 1), INPUT_GAP, TARGET_GAP, (7, 15)])
def test_a_cell_is_forecast_as_by_the_ridge_regression_of_numpy(
    store: Store, data: DataConfig, predictors: Predictors, cell: tuple[int, int], tmp_path: Path
) -> None:
    fitted = LinearBaseline(store, data, predictors).fit_once(tmp_path)
    times = times_of(store, 2016, [lag for _, lag in predictors.history])
    assert fitted.times == times.size
    assert fitted.coefficients.shape == (len(predictors), 24, *TINY_GRID)
    expected = expected_forecast(store, predictors, times, fitted.penalty, cell)
    assert_forecast(store, data, fitted, expected, cell)


def test_the_predictors_are_a_constant_fields_waves_and_the_runs_earlier_fields(
    store: Store, tiny_config: Callable[..., RunConfig]
) -> None:
    assert Predictors.of_store(replace(store, channels=("v", "nh3", "u"))).variables == ("u", "v", "nh3")
    assert Predictors.of_store(store) == OWN_FIELDS
    assert len(OWN_FIELDS) == 1 + 6 + 3 * len(DYNAMIC_VARIABLES) == 40
    earlier = {"history_hours": [6, 12], "history_variables": ["pm25"]}
    same = Predictors.of_run(store, tiny_config(data=earlier).data)
    assert same.history == (("pm25", 6), ("pm25", 12))
    assert len(same) == 1 + 6 + 3 * len(same.variables) + 2
    ahead = Predictors.of_run(store, tiny_config(data=earlier | {"weather_at_horizons": ["u", "rh"]}).data)
    assert ahead.weather == tuple((name, hours) for hours in HORIZONS_H for name in ("u", "rh"))
    assert len(ahead) == len(same) + 8


def test_a_missing_input_counts_as_the_mean_of_its_channel(
    store: Store, data: DataConfig, tmp_path: Path
) -> None:
    baseline = LinearBaseline(store, data, OWN_FIELDS)
    fitted = baseline.fit_once(tmp_path)
    hour = np.array(["2018-01-03T12"], dtype="datetime64[h]")
    row, column = INPUT_GAP
    values = np.array([store.read(int(store.locate(hour)[0]))[:, row, column]])
    wind = store.channels.index("u")
    assert np.isnan(values[0, wind])
    values[0, wind] = store.mean["u"]
    mean, std = (np.array([table[name] for name in store.channels]) for table in (store.mean, store.std))
    now = ((values - mean) / std)[0, [store.channels.index(name) for name in DYNAMIC_VARIABLES]]
    waves = design(store, hour, OWN_FIELDS)[0, :7, row, column]
    inputs = np.concatenate([waves, now, now * waves[1], now * waves[2]])
    expected = (inputs @ fitted.coefficients[:, :, row, column]).reshape(len(HORIZONS_H), -1)
    scale, shift = (np.array([table[name] for name in TARGET_VARIABLES]) for table in (store.std, store.mean))
    got = baseline.forecast(fitted, hour)[0, :, :, row, column]
    np.testing.assert_allclose(got, expected * scale + shift, rtol=1e-4)


def test_a_time_without_one_target_is_left_out_for_its_cell_only(
    store: Store, data: DataConfig, tmp_path: Path
) -> None:
    fitted = LinearBaseline(store, data, OWN_FIELDS).fit_once(tmp_path)
    times = times_of(store, 2016)
    known = np.isfinite(outcomes(store, times)).all(1)
    assert known[:, 4, 9].sum() < times.size
    assert known[:, 4, 8].all()
    fully_known = times[known[:, 4, 9]]
    neighbour = functools.partial(expected_forecast, store, OWN_FIELDS, penalty=fitted.penalty, cell=(4, 8))
    assert_forecast(store, data, fitted, neighbour(fit_times=times), (4, 8))
    with pytest.raises(AssertionError):
        assert_forecast(store, data, fitted, neighbour(fit_times=fully_known), (4, 8))
    own = expected_forecast(store, OWN_FIELDS, fully_known, fitted.penalty, (4, 9))
    assert_forecast(store, data, fitted, own, (4, 9))


def test_masked_cells_have_no_coefficients_and_are_forecast_as_the_mean(
    store: Store, data: DataConfig, tmp_path: Path
) -> None:
    baseline = LinearBaseline(store, data, OWN_FIELDS)
    fitted = baseline.fit_once(tmp_path)
    masked = store.static["mask"] == 0
    assert 0 < masked.sum() < masked.size
    assert not fitted.coefficients[..., masked].any()
    assert np.abs(fitted.coefficients[..., ~masked]).max((0, 1)).min() > 0
    forecast = baseline.forecast(fitted, TEST_TIMES)
    assert np.isfinite(forecast).all()
    means = [store.mean[name] for name in TARGET_VARIABLES]
    for c, mean in enumerate(means):
        np.testing.assert_allclose(forecast[:, :, c, masked], mean, rtol=1e-6)


def test_the_penalty_has_the_lowest_error_on_the_validation_years(
    store: Store, data: DataConfig, tmp_path: Path
) -> None:
    fitted = LinearBaseline(store, data, OWN_FIELDS).fit_once(tmp_path)
    train, validation = times_of(store, 2016), times_of(store, 2017)
    x, y = design(store, train, OWN_FIELDS), outcomes(store, train)
    x_new, y_new = design(store, validation, OWN_FIELDS), outcomes(store, validation)
    cells = np.argwhere(store.static["mask"] > 0)
    errors = [
        sum(
            np.square(
                x_new[:, :, i, j] @ ridge(x[:, :, i, j], y[:, :, i, j], penalty) - y_new[:, :, i, j]
            ).sum()
            for i, j in cells
        )
        for penalty in PENALTIES
    ]
    assert fitted.penalty == PENALTIES[int(np.argmin(errors))]
    assert np.argmin(errors) > 0


def test_blocks_of_rows_do_not_change_the_result(
    store: Store, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = LinearBaseline(store, data, SOME_FIELDS)
    wholly, reported = [list[tuple[str, int, int]]() for _ in range(2)]
    whole = baseline.fit(lambda *facts: wholly.append(facts))
    monkeypatch.setattr("aqtopo.evaluation.linear.MAX_SUM_BYTES", 1)
    in_rows = baseline.fit(lambda *facts: reported.append(facts))
    last = len(reported) - 1
    assert reported == [("blocks of the regression linear", done, last) for done in range(last + 1)]
    assert last == TINY_GRID[0] * (len(wholly) - 1)
    assert (in_rows.penalty, in_rows.times) == (whole.penalty, whole.times)
    np.testing.assert_allclose(in_rows.coefficients, whole.coefficients, rtol=1e-4, atol=1e-5)


def test_of_many_hours_every_nth_is_taken(
    store: Store, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = times_of(store, 2016, [3, 24])
    assert times.size == 120
    monkeypatch.setattr("aqtopo.evaluation.linear.MAX_TIMES", 70)
    fitted = LinearBaseline(store, data, SOME_FIELDS).fit()
    assert fitted.times == 60
    expected = expected_forecast(store, SOME_FIELDS, times[::2], fitted.penalty, (3, 3))
    assert_forecast(store, data, fitted, expected, (3, 3))


def test_too_few_hours_are_refused_with_numbers_and_remedy(
    store: Store, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aqtopo.evaluation.linear.MAX_TIMES", 119)
    message = r"40 predictors needs at least 120 hours, .* 2016 have 72 in .*noisy\.zarr .* with more hours"
    with pytest.raises(ValueError, match=message):
        LinearBaseline(store, data, OWN_FIELDS).fit()


@pytest.fixture
def copied(noisy_store: Path, tmp_path: Path) -> Path:
    """A copy of the store without baselines beside it."""
    shutil.copytree(noisy_store, tmp_path / "copy.zarr")
    return tmp_path / "copy.zarr"


def change(file: Path) -> np.ndarray:
    """Double the coefficients in a file; return them."""
    content = load_file(file)
    metadata = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])[
        "__metadata__"
    ]
    doubled = 2 * content["coefficients"]
    save_file({"coefficients": doubled}, file, metadata)
    return doubled


def test_years_without_a_validation_hour_are_refused(copied: Path, data: DataConfig) -> None:
    absent = data.model_copy(update={"validation_years": (2015,)})
    with pytest.raises(ValueError, match=r"validation years 2015 have no hour in .*penalty cannot be chosen"):
        LinearBaseline(open_store(copied), absent, SOME_FIELDS).fit()


def test_a_fit_is_kept_beside_the_store_and_read_the_second_time(
    copied: Path, data: DataConfig, tmp_path: Path
) -> None:
    baseline = LinearBaseline(open_store(copied), data, SOME_FIELDS)
    first = baseline.fit_once(tmp_path / "run")
    (file,) = (tmp_path / "copy.zarr.baselines").iterdir()
    assert file.name.startswith("linear-")
    assert file.suffix == ".safetensors"
    assert not (tmp_path / "run").exists()
    again = baseline.fit_once(tmp_path / "run")
    np.testing.assert_array_equal(again.coefficients, first.coefficients)
    assert (again.penalty, again.times, again.described) == (first.penalty, first.times, first.described)
    doubled = change(file)
    np.testing.assert_array_equal(baseline.fit_once(tmp_path / "run").coefficients, doubled)


def test_a_store_with_other_hours_is_fitted_again(
    tiny_dataset: xr.Dataset, data: DataConfig, tmp_path: Path
) -> None:
    stores = []
    for change in (0.0, 1.0):
        # The last hour of the test year: no statistics and no fit depend on it.
        tiny_dataset["fields"][-1] += change
        path = tmp_path / f"{change:g}.zarr"
        write_store(tiny_dataset, path)
        write_statistics(path, [2016])
        stores.append(open_store(path))
    assert stores[0].digest == stores[1].digest
    digests = [LinearBaseline(store, data, SOME_FIELDS)._digest() for store in stores]
    assert digests[0] != digests[1]


def test_other_predictors_targets_and_years_have_files_of_their_own(
    copied: Path, data: DataConfig, tmp_path: Path
) -> None:
    store = open_store(copied)
    further = [
        data.model_copy(update={"targets": ("o3",)}),
        data.model_copy(update={"train_years": (2017,), "validation_years": (2016,)}),
        data.model_copy(update={"horizons": (12, 24)}),
    ]
    for settings, predictors in [(data, SOME_FIELDS), (data, Predictors(("pm25",)))] + [
        (each, SOME_FIELDS) for each in further
    ]:
        LinearBaseline(store, settings, predictors).fit_once(tmp_path)
    assert len(list((tmp_path / "copy.zarr.baselines").iterdir())) == 5


def test_a_fit_is_kept_in_the_run_directory_if_the_stores_folder_cannot_be_written(
    copied: Path, data: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "copy.zarr.baselines").write_text("in the way", encoding="utf-8")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    baseline = LinearBaseline(open_store(copied), data, SOME_FIELDS)
    baseline.fit_once(run_dir)
    (file,) = (run_dir / "baselines").iterdir()
    doubled = change(file)
    np.testing.assert_array_equal(baseline.fit_once(run_dir).coefficients, doubled)


def test_a_fit_that_can_be_kept_nowhere_is_used(copied: Path, data: DataConfig, tmp_path: Path) -> None:
    for folder in (tmp_path / "copy.zarr.baselines", tmp_path / "run"):
        folder.write_text("in the way", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"cannot be kept .* the last tried is .*run.baselines"):
        fitted = LinearBaseline(open_store(copied), data, SOME_FIELDS).fit_once(tmp_path / "run")
    assert fitted.coefficients.any()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(b""),
        lambda file: save_file({"other": np.zeros(3)}, file, {"penalty": "0.1", "times": "9"}),
        lambda file: save_file({"coefficients": np.zeros(3)}, file),
        lambda file: save_file({"coefficients": np.zeros(3)}, file, {"penalty": "0.1", "times": "9"}),
    ],
    ids=["truncated", "empty", "another tensor", "no metadata", "another shape"],
)
def test_a_damaged_file_is_refused_by_name(
    copied: Path, data: DataConfig, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    baseline = LinearBaseline(open_store(copied), data, SOME_FIELDS)
    baseline.fit_once(tmp_path)
    (file,) = (tmp_path / "copy.zarr.baselines").iterdir()
    damage(file)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .* Remove it"):
        baseline.fit_once(tmp_path)
    file.unlink()
    assert baseline.fit_once(tmp_path).coefficients.any()


@pytest.mark.slow
def test_two_ranks_fit_what_one_does(
    copied: Path, tiny_config: Callable[..., RunConfig], save_untrained: Callable[[RunConfig], Path]
) -> None:
    run_dir = save_untrained(
        tiny_config(
            data={
                "store": str(copied),
                "history_hours": [6],
                "history_variables": ["pm25", "o3"],
            }
        )
    )
    shared = scores_of_two_ranks(run_dir)
    kept = copied.with_name("copy.zarr.baselines")
    assert len(list(kept.iterdir())) == 2
    shutil.rmtree(kept)
    write_results(evaluate(load_run(run_dir)), run_dir)
    alone = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
    assert shared["linear"] == alone["linear"] != alone["linear_same"] == shared["linear_same"]
    for ours, theirs in zip(shared["scores"], alone["scores"], strict=True):
        for name in FORECASTS:
            np.testing.assert_allclose(ours[name]["rmse"], theirs[name]["rmse"], rtol=1e-6)
    for part in ("scores", "strata"):
        # Bias and skill are differences of larger numbers and may be near 0.
        np.testing.assert_allclose(numbers(shared[part]), numbers(alone[part]), rtol=1e-6, atol=1e-6)
