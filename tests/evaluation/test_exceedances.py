"""Days above the limits of the air-quality standard."""

import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console
from scores.categorical import BinaryContingencyManager

from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.evaluation.exceedances import LIMITS, MIN_HOURS, Exceedances, exceedance_scores
from aqtopo.evaluation.points import FORECASTS, WHOLE, Areas, make_scored_batch
from aqtopo.evaluation.scores import ScoreAxes
from aqtopo.evaluation.tables import exceedance_table

POLLUTANTS = ("o3", "pm25", "co")
HORIZONS_H = (12, 96)
GRID = (3, 4)
EAST = np.zeros((1, *GRID), dtype=np.bool_)
EAST[:, :, 2:] = True
INITS = np.arange("2018-01-01T05", "2018-01-06T09", dtype="datetime64[h]")


class Made:
    """Five days of hourly forecasts and truths around the limits, with holes, as arrays and as counts."""

    def __init__(self, init_times: np.ndarray, batch: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shape = (init_times.size, len(HORIZONS_H), len(POLLUTANTS), *GRID)
        level = np.array([60.0, 75.0, 4000.0])[:, None, None]
        # Whole days differ more than their hours, so that means lie on both sides of the limits.
        days = (init_times.astype("datetime64[D]") - init_times[0].astype("datetime64[D]")).astype(int)

        def field() -> np.ndarray:
            daily = rng.normal(1.0, 0.3, (days.max() + 1, *shape[1:]))
            return (level * (daily[days] + rng.normal(0.0, 0.1, shape))).astype(np.float32)

        self.init_times = init_times
        self.forecasts = {name: field() for name in FORECASTS}
        self.truth = np.where(rng.random(shape) < 0.05, np.float32(np.nan), field())
        wanted = np.ones(shape, dtype=np.bool_)
        cells = np.concatenate([np.ones_like(EAST), EAST])
        areas = Areas((WHOLE, "east"), (WHOLE, "region"), cells, cell_weights=np.full(cells.shape[1:], 0.5))
        axes = ScoreAxes(
            FORECASTS, POLLUTANTS, HORIZONS_H, np.unique(init_times.astype("datetime64[D]")), areas
        )
        accumulator = Exceedances(axes, init_times, ranks=1)
        for start in range(0, init_times.size, batch):
            own = slice(start, start + batch)
            part = {name: values[own] for name, values in self.forecasts.items()}
            accumulator.add(
                make_scored_batch(init_times[own], HORIZONS_H, POLLUTANTS, part, self.truth[own], wanted[own])
            )
        accumulator.all_reduce(SINGLE_RANK)
        self.counts = accumulator.tables()["exceedances"]

    def daily(self, values: np.ndarray, pollutant: str, lead: int) -> xr.DataArray:
        """Means over days in Beijing with enough hours, of the hours at which there is a truth."""
        at = np.s_[:, HORIZONS_H.index(lead), POLLUTANTS.index(pollutant)]
        beijing = (self.init_times + np.timedelta64(lead + 8, "h")).astype("datetime64[ns]")
        hourly = xr.DataArray(
            np.where(np.isfinite(self.truth[at]), values[at], np.nan).astype(np.float64),
            dims=("time", "lat", "lon"),
            coords={"time": beijing},
        )
        return hourly.resample(time="D").mean().where(hourly.resample(time="D").count() >= MIN_HOURS)


@pytest.mark.parametrize("batch", [7, 200])
def test_counts_and_scores_equal_those_of_daily_means_made_at_once(batch: int) -> None:
    made = Made(INITS, batch)
    scores = exceedance_scores(made.counts)
    for pollutant in ("pm25", "co"):
        for lead in HORIZONS_H:
            truth = made.daily(made.truth, pollutant, lead)
            assert truth.notnull().any(("lat", "lon")).sum() >= 4
            events = (truth > LIMITS[pollutant]).where(truth.notnull()).astype(float)
            for name in FORECASTS:
                alarms = made.daily(made.forecasts[name], pollutant, lead) > LIMITS[pollutant]
                expected = BinaryContingencyManager(
                    alarms.where(truth.notnull()).astype(float), events
                ).transform()
                counts = expected.get_counts()
                here = scores.sel(pollutant=pollutant, horizon=lead, area=WHOLE).sel(forecast=name)
                assert here["hits"] == counts["tp_count"] > 0
                assert here["misses"] == counts["fn_count"] > 0
                assert here["false_alarms"] == counts["fp_count"] > 0
                assert here["correct_negatives"] == counts["tn_count"] > 0
                np.testing.assert_allclose(here["pod"], expected.probability_of_detection())
                np.testing.assert_allclose(here["far"], expected.false_alarm_ratio())
                np.testing.assert_allclose(here["csi"], expected.critical_success_index())


def test_areas_hold_their_own_cells() -> None:
    counts = Made(INITS, 24).counts.sel(pollutant="pm25", horizon=12).sel(forecast="model")
    total = sum(counts[name] for name in ("hits", "misses", "false_alarms", "correct_negatives"))
    assert 0 < total.sel(area="east") <= 0.6 * total.sel(area=WHOLE)


def test_ozone_whose_limit_is_no_daily_mean_is_left_out() -> None:
    assert Made(INITS[:30], 30).counts["pollutant"].values.tolist() == ["pm25", "co"]


def test_days_with_too_few_forecasts_are_not_counted() -> None:
    counts = Made(INITS[::2], 24).counts
    assert not counts.to_array().any()
    said = exceedance_table(exceedance_scores(counts))
    assert isinstance(said, str)
    assert "20 of its hours" in said
    assert "--every 1" in said


def test_the_table_has_a_row_for_every_forecast() -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(exceedance_table(exceedance_scores(Made(INITS, 48).counts)))
    assert "neither" not in buffer.getvalue()
    rows = [line.split() for line in buffer.getvalue().splitlines() if " h " in line]
    assert len(rows) == 2 * 2 * len(FORECASTS)
    assert rows[0][:5] == ["PM2.5", "model", "75", "12", "h"]
    assert pd.to_numeric(rows[0][5:]).size == 6


def test_pollutants_without_events_and_alarms_are_only_named() -> None:
    scores = exceedance_scores(Made(INITS, 48).counts)
    for name in ("hits", "misses", "false_alarms"):
        scores[name].loc[{"pollutant": "co"}] = 0
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(exceedance_table(scores))
    assert len([line for line in buffer.getvalue().splitlines() if " h " in line]) == 2 * len(FORECASTS)
    assert "no event and no alarm: carbon monoxide" in " ".join(buffer.getvalue().split())
