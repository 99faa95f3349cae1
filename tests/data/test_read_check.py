"""Checks of values when they are read: of each hour its range, of each split its level."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from aqtopo.cli.main import main
from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.channels import FILL_VALUES
from aqtopo.data.loader import EvaluationLoader, TrainingLoader
from aqtopo.data.read_check import HourCheck, check_hours
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.inference.load import load_run
from aqtopo.refusal import Retry, UnreadableDataError, retry_after
from aqtopo.variables import DYNAMIC_VARIABLES, TARGET_VARIABLES

TinyConfig = Callable[..., RunConfig]
Change = Callable[[Any], Any]


def times(factor: float) -> Change:
    return lambda values: values * np.float32(factor)


OF_YEAR: dict[str, tuple[str, Change, str]] = {
    "fill values": ("temp", lambda v: v * 0 - 999, "has temp = -999 in 128 of 128 values, first at latitude"),
    "Celsius": ("temp", lambda v: v - 273.15, "has temp = .*far outside 180 to 340 K"),
    "hPa": ("psfc", times(0.01), "has psfc = .*far outside 30000 to 110000 Pa"),
    "no value": ("rh", times(np.nan), "has no value of rh at 16 hours from {year}-01-"),
    "a fraction": ("rh", times(0.01), "has a mean rh of .* outside 2 to 100 %: it is in other units"),
    **{
        f"{name} in {units}": (name, times(factor), f"has a mean {name} of .*: it is in other units, at")
        for name in TARGET_VARIABLES
        for units, factor in (("kg m-3", 1e-9), ("mg m-3", 1e-3))
    },
}
"""Changes of all hours of a year after its statistics were computed, and what the message must name."""


def change_hours(path: Path, since: str, until: str, name: str, change: Change) -> None:
    stored, fields = open_store(path).times, zarr.open_array(path / "fields", mode="r+")
    first, last = np.searchsorted(stored, np.array([since, until], "datetime64[h]"))
    place = DYNAMIC_VARIABLES.index(name)
    fields[first:last, place] = change(np.asarray(fields[first:last, place]))


@pytest.mark.parametrize("fault", OF_YEAR)
def test_a_changed_year_is_refused_before_the_first_step(
    damaged: Path, tiny_config: TinyConfig, fault: str
) -> None:
    name, change, message = OF_YEAR[fault]
    change_hours(damaged, "2017", "2018", name, change)
    TrainingLoader(open_store(damaged), tiny_config(), 0, 1)
    with pytest.raises(ValueError, match=message.format(year=2017)):
        EvaluationLoader(open_store(damaged), tiny_config(), "validation", 0, 1, 2)


@pytest.mark.parametrize("fault", ["fill values", "Celsius", "hPa", "no value", "no2 in mg m-3"])
def test_evaluate_refuses_a_changed_year(
    damaged: Path, tiny_config: TinyConfig, save_untrained: Callable[..., Path], fault: str
) -> None:
    name, change, message = OF_YEAR[fault]
    run_dir = save_untrained(tiny_config(data={"store": str(damaged)}))
    change_hours(damaged, "2018", "2019", name, change)
    with pytest.raises(ValueError, match=message.format(year=2018)):
        evaluate(load_run(run_dir))


@pytest.mark.parametrize("name", ["pm25", "v"])
def test_baselines_refuse_a_changed_hour_of_the_training_years(
    damaged: Path, tiny_config: TinyConfig, save_untrained: Callable[..., Path], name: str
) -> None:
    run_dir = save_untrained(tiny_config(data={"store": str(damaged)}))
    change_hours(damaged, "2016-01-04T07", "2016-01-04T08", name, lambda v: v * 0 - 9999)
    with pytest.raises(ValueError, match=f"at 2016-01-04T07 has {name} = -9999 in 128 of 128"):
        evaluate(load_run(run_dir))


def test_train_refuses_a_changed_validation_year_with_code_2(
    damaged: Path,
    tiny_config: TinyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_hours(damaged, "2017", "2018", *OF_YEAR["fill values"][:2])
    config = tiny_config(data={"store": str(damaged)}, training={"validate_every": 24})
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["aqtopo", "train", str(tmp_path / "config.json")])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    assert "2017-01-01T00 has temp = -999 in 128 of 128" in " ".join(capsys.readouterr().err.split())
    assert not Path(config.training.run_dir).exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_hour_that_the_sample_misses_ends_the_pass_and_no_retry_helps(
    damaged: Path, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("aqtopo.data.read_check.CHECKED_HOURS", 2)
    change_hours(damaged, "2018-01-03", "2018-01-03T01", "psfc", times(0.01))
    loader = EvaluationLoader(open_store(damaged), tiny_config(data={"workers": workers}), "test", 0, 1, 2)
    with pytest.raises(ValueError, match=r"at 2018-01-03T00 has psfc = .*far outside") as caught:
        list(loader)
    assert not isinstance(caught.value, UnreadableDataError)
    assert retry_after(caught.value) is Retry.NEVER


def test_only_the_channels_that_are_read_are_checked(damaged: Path, tiny_config: TinyConfig) -> None:
    for name, change, _ in (OF_YEAR["no value"], OF_YEAR["hPa"]):
        change_hours(damaged, "2018", "2019", name, change)
    names = [name for name in tiny_config().data.variables if name not in ("rh", "psfc")]
    loader = EvaluationLoader(open_store(damaged), tiny_config(data={"variables": names}), "test", 0, 1, 2)
    assert [batch.filled for batch in loader] == [0, 0, 0]


def test_a_channel_without_a_value_in_some_hours_is_usual(damaged: Path, tiny_config: TinyConfig) -> None:
    change_hours(damaged, "2018-01-02", "2018-01-04", "rh", times(np.nan))
    change_hours(damaged, "2018-01-05", "2018-01-06", "o3", times(np.inf))
    loader = EvaluationLoader(open_store(damaged), tiny_config(), "test", 0, 1, 2)
    assert sum(batch.filled for batch in loader) == 3 * 128


def test_a_channel_with_one_value_a_day_is_usual(damaged: Path, tiny_config: TinyConfig) -> None:
    for day in range(1, 11):
        change_hours(damaged, f"2018-01-{day:02}T00", f"2018-01-{day:02}T13", "rh", times(np.nan))
        change_hours(damaged, f"2018-01-{day:02}T14", f"2018-01-{day + 1:02}T00", "rh", times(np.nan))
    loader = EvaluationLoader(open_store(damaged), tiny_config(), "test", 0, 1, 2)
    assert sum(batch.filled for batch in loader) == 6 * 128


@pytest.mark.parametrize("name", ["u", "temp", "psfc", "rh", "pm10", "co", "pm25"])
@pytest.mark.parametrize("value", [*FILL_VALUES, 9.96921e36, 1e12, -1e6])
def test_a_single_value_in_an_hour_with_missing_ones_is_found(
    tiny_store: Path, name: str, value: float
) -> None:
    store = open_store(tiny_store)
    fields, place = store.read(5).copy(), store.channels.index(name)
    fields[:, 2] = np.nan
    HourCheck(store, store.channels)(5, fields)
    fields[place, 6, 7] = value
    with pytest.raises(ValueError, match=f"2016-01-01T05 has {name} = .*1 of 128 values"):
        HourCheck(store, store.channels)(5, fields)
    HourCheck(store, [each for each in store.channels if each != name])(5, fields)


def test_small_negative_concentrations_are_read(damaged: Path) -> None:
    change_hours(damaged, "2016-01-01T05", "2016-01-01T06", "pm25", lambda v: np.where(v > v.mean(), v, -1))
    store = open_store(damaged)
    read = HourCheck(store, store.channels).read_span(5, 6)[0, store.channels.index("pm25")]
    assert read.min() == -1.0


def test_a_sample_of_the_hours_is_read(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = open_store(tiny_store), list[int]()

    def read_span(_: HourCheck, first: int, last: int) -> Any:
        read.append(first)
        return store.read_span(first, last)

    monkeypatch.setattr(HourCheck, "read_span", read_span)
    check_hours(store, ["temp"], store.times)
    check_hours(store, ["temp"], store.times[:3])
    assert (read[0], read[23], len(read)) == (0, store.times.size - 1, 24 + 3)
