import numpy as np
import pytest
import xarray as xr

from aqtopo.evaluation.exceedances import NO_DAILY_MEANS
from aqtopo.evaluation.points import BASELINES, FORECASTS, LINEAR, LINEAR_SAME
from aqtopo.evaluation.score_record import Exceedance, PairScores, Skill, Spectrum
from aqtopo.report.score_tables import (
    breakdown_tables,
    exceedance_rows,
    make_score_table,
    no_exceedances,
    sharpness_rows,
)
from aqtopo.report.text import plus, pretty_units, round_together
from aqtopo.variables import TARGET_VARIABLES, VARIABLES

POLLUTANTS = {name: VARIABLES[name] for name in TARGET_VARIABLES}


def scores(model: float, persistence: float = 10.0, climatology: float = 20.0) -> xr.Dataset:
    others = {"persistence": persistence, "climatology": climatology}
    rmse = np.array([model, *(others.get(name, 30.0) for name in BASELINES)]).reshape(-1, 1, 1)
    by_forecast = ("forecast", "pollutant", "horizon")
    return xr.Dataset(
        {
            "rmse": (by_forecast, rmse),
            "mae": (by_forecast, rmse / 2),
            "bias": (by_forecast, -rmse / 4),
            "count": (by_forecast[1:], [[123]]),
        },
        coords={"forecast": list(FORECASTS), "pollutant": ["pm25"], "horizon": [12]},
    )


@pytest.mark.parametrize(
    ("model", "verdict", "percent"),
    [
        (8.0, "better", "+20\N{NO-BREAK SPACE}%"),
        (13.0, "worse", "\N{MINUS SIGN}30\N{NO-BREAK SPACE}%"),
        (9.97, "level", "0\N{NO-BREAK SPACE}%"),
        (10.03, "level", "0\N{NO-BREAK SPACE}%"),
        (np.nan, "unknown", "no data"),
    ],
)
def test_a_cell_compares_with_the_best_baseline(model: float, verdict: str, percent: str) -> None:
    (row,) = make_score_table(scores(model)).rows
    (cell,) = row.cells
    assert (cell.best_reference, cell.verdict, cell.percent) == ("persistence", verdict, percent)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "0.00"), (0.004, "0.00"), (-0.5, "\N{MINUS SIGN}0.50"), (0.5, "+0.50")]
)
def test_a_zero_has_no_sign_also_where_it_was_rounded_to(value: float, text: str) -> None:
    assert plus(round_together([value, 1.0])[0]) == text
    assert plus(round_together([np.nan])[0]) == "n/a"


def test_climatology_is_the_rival_where_it_is_better() -> None:
    assert make_score_table(scores(8.0, persistence=40.0)).rows[0].cells[0].best_reference == "climatology"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (8.0, "model is 8.00 µg\xa0m⁻³, 20% less than persistence, the best baseline"),
        (13.0, "model is 13.0 µg\xa0m⁻³, 30% more than persistence, the best baseline"),
        (9.99, "model is 9.99 µg\xa0m⁻³, within 1% of persistence, the best baseline"),
    ],
)
def test_the_headline_agrees_with_the_scores(model: float, sentence: str) -> None:
    headline = make_score_table(scores(model)).headline
    assert headline.startswith("PM2.5 12 h ahead: the RMSE of the model is ")
    assert sentence in headline
    others = ", ".join(f"{name} 30.0" for name in (LINEAR, LINEAR_SAME))
    assert headline.endswith(f"(persistence 10.0, climatology 20.0, {others}).")


def test_the_full_table_has_a_line_for_each_forecast() -> None:
    lines = make_score_table(scores(8.0)).lines
    assert [line.forecast for line in lines] == list(FORECASTS)
    assert (lines[0].rmse, lines[0].mae, lines[0].bias, lines[0].count) == (8.0, 4.0, -2.0, 123)
    assert lines[0].texts == ("8.00", "4.00", "\N{MINUS SIGN}2.00")


@pytest.mark.parametrize(("units", "pretty"), [("ug m-3", "µg\xa0m⁻³"), ("K", "K"), ("m s-1", "m\xa0s⁻¹")])
def test_units_are_written_as_people_do(units: str, pretty: str) -> None:
    assert pretty_units(units) == pretty


def test_numbers_share_their_decimals() -> None:
    assert round_together((8.123, 12.0)) == ("8.1", "12.0")
    assert round_together((0.5, -0.25)) == ("0.50", "\N{MINUS SIGN}0.25")
    assert round_together((200.4, float("nan"))) == ("200", "n/a")


def entry(pollutant: str, **skill: float) -> PairScores:
    """Skill against some baselines, undefined against the others."""
    return PairScores.model_construct(pollutant=pollutant, skill=Skill(**(dict.fromkeys(BASELINES) | skill)))


def test_each_pollutant_has_its_rows_areas_before_seasons() -> None:
    ozone_entries = [entry("o3", climatology=0.0), entry("o3", climatology=0.0)]
    strata = {
        "hour": {"0": [entry("pm25", linear=0.9), entry("pm25", linear=0.9), *ozone_entries]},
        "season": {
            "DJF": [
                entry("pm25", persistence=0.4, linear=0.1, linear_same=0.2),
                entry("pm25"),
                *ozone_entries,
            ]
        },
        "area": {
            "all": [
                entry("pm25", persistence=-0.2, climatology=0.3),
                entry("pm25", persistence=0.3, climatology=0.005),
                *ozone_entries,
            ],
            "plateau": [
                entry("pm25", linear=0.5),
                entry("pm25", climatology=0.6, linear_same=0.5),
                *ozone_entries,
            ],
        },
    }
    particles, ozone = breakdown_tables(strata, POLLUTANTS)
    assert (particles.label, ozone.label) == ("PM2.5", "Ozone")
    assert [[place.label for place in group] for group in particles.groups] == [["all", "plateau"], ["DJF"]]
    shown = [
        [(skill.verdict, name) for skill, name in place.cells]
        for group in particles.groups
        for place in group
    ]
    assert shown == [
        [("worse", "persistence"), ("level", "climatology")],
        [("better", "linear"), ("better", "linear_same")],
        [("better", "linear"), ("unknown", "")],
    ]
    (_, _), (winter,) = particles.groups
    assert winter.cells[0][0].skill == 0.1


def test_scores_without_strata_have_no_tables() -> None:
    assert breakdown_tables({}, POLLUTANTS) == ()


def exceedance(forecast: str, hits: int, csi: float | None, negatives: int = 0) -> Exceedance:
    return Exceedance(
        forecast=forecast,
        pollutant="pm25",
        horizon=12,
        limit=75.0,
        hits=hits,
        misses=0,
        false_alarms=0,
        correct_negatives=negatives,
        csi=csi,
    )


def every_forecast(hits: int, model: float | None) -> list[Exceedance]:
    csi = {"model": model, "climatology": None}
    return [exceedance(name, hits, csi.get(name, 0.5)) for name in FORECASTS]


def test_a_line_has_the_numbers_of_the_model_and_the_index_of_all() -> None:
    (line,) = exceedance_rows(every_forecast(1200, 0.6), POLLUTANTS)
    assert (line.label, line.numbers) == ("PM2.5 above 75", ("1,200", "0", "0"))
    assert line.csi == ("0.60", "0.50", "n/a", *(len(BASELINES) - 2) * ["0.50"])
    assert line.best
    assert not exceedance_rows(every_forecast(1200, 0.4), POLLUTANTS)[0].best


def test_a_limit_that_nothing_came_near_has_no_line() -> None:
    assert exceedance_rows(every_forecast(0, None), POLLUTANTS) == ()


def test_an_empty_exceedance_table_has_a_reason() -> None:
    assert no_exceedances([]) == no_exceedances(every_forecast(1200, 0.6)) == ""
    assert no_exceedances(every_forecast(0, None)) == NO_DAILY_MEANS
    assert "in the truth or in the forecast" in no_exceedances([exceedance("model", 0, None, negatives=9)])


def test_sharpness_is_that_of_the_model_in_the_order_of_the_other_tables() -> None:
    records = [
        Spectrum(forecast=name, pollutant=pollutant, horizon=24, resolved_km=222.4, short_waves=None)
        for name in ("climatology", "model")
        for pollutant in ("pm10", "o3", "pm25")
    ]
    *others, line = sharpness_rows(records, POLLUTANTS)
    assert [other.label for other in others] == ["PM2.5", "PM10"]
    assert (line.label, line.resolved_km, line.short_waves) == ("Ozone", "222", "n/a")
