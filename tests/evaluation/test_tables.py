import io
from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from aqtopo.evaluation.points import BASELINES, FORECASTS, WEIGHTINGS
from aqtopo.evaluation.tables import TABLE_WIDTH, score_table, summary, table_width
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

from .made import scores_of_batches


def scores_with_rmse(rmse: np.ndarray, names: Sequence[str] = FORECASTS) -> xr.Dataset:
    """Scores of six pollutants and four horizons from RMSE (F, K, C), one point each."""
    wide = rmse[:, None, :, :, None, None]
    batch = dict(zip(names, wide, strict=True)), np.zeros(wide.shape[1:]), np.ones(wide.shape[1:], bool)
    scores = scores_of_batches(batch, pollutants=TARGET_VARIABLES, horizons_h=HORIZONS_H)
    scores = scores.assign_coords(units=("pollutant", ["ug m-3"] * 6))
    head = {"run": "demo", "tag": "epoch02-step000100", "split": "test", "years": [2017, 2018]}
    return scores.assign_attrs(head, initialisations=1096)


@pytest.fixture
def scores() -> xr.Dataset:
    """The model wins everywhere but: persistence at 12 h, climatology for ozone, a tie for SO2 at 96 h.

    The other baselines are worse than the model everywhere.
    """
    rmse = np.ones((len(FORECASTS), 4, 6)) * 400.0
    rmse[:3] = np.array([100.0, 200.0, 300.0])[:, None, None]
    rmse[1, 0] = 50.0
    rmse[2, :, TARGET_VARIABLES.index("o3")] = 25.0
    rmse[1, 3, TARGET_VARIABLES.index("so2")] = 100.0
    return scores_with_rmse(rmse)


def printed(scores: xr.Dataset, width: int = TABLE_WIDTH) -> list[str]:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(score_table(scores))
    return buffer.getvalue().splitlines()


def test_every_pair_has_a_row_that_fits(scores: xr.Dataset) -> None:
    lines = printed(scores)
    assert max(map(len, lines)) <= TABLE_WIDTH
    rows = [line for line in lines if " h " in line]
    assert len(rows) == 24
    assert rows[0].split()[:3] == ["PM2.5", "12", "h"]
    assert rows[23].split()[:3] == ["ozone", "96", "h"]
    assert any("in ug m-3;" in line for line in lines)
    assert not any("…" in line for line in lines)


def test_the_title_names_run_state_years_and_number_of_forecasts(scores: xr.Dataset) -> None:
    assert "demo (epoch02-step000100) on test 2017, 2018: 1,096 forecasts" in printed(scores)[0]


def test_the_title_names_the_weights_of_the_cells(scores: xr.Dataset) -> None:
    title = "demo (epoch02-step000100) on test 2017, 2018: 1,096 forecasts"
    for weighting, added in (("none", ""), ("area", "; cells weighted by area")):
        lines = printed(scores.assign_attrs(weighting=WEIGHTINGS[weighting]))
        assert lines[0].strip() == title + added


def test_a_single_forecast_is_called_one(scores: xr.Dataset) -> None:
    assert printed(scores.assign_attrs(initialisations=1))[0].rstrip().endswith("2018: 1 forecast")


def test_the_lowest_rmse_is_marked_also_without_colour(scores: xr.Dataset) -> None:
    rows = [line for line in printed(scores) if "PM2.5" in line]
    assert "50.00*" in rows[0]
    assert rows[0].count("*") == 1
    assert "100.00*" in rows[1]


def test_equal_lowest_rmse_are_all_marked(scores: xr.Dataset) -> None:
    row = [line for line in printed(scores) if "sulfur dioxide" in line][-1]
    assert row.count("100.00*") == 2


def test_skill_is_printed_with_its_sign(scores: xr.Dataset) -> None:
    rows = [line for line in printed(scores) if "PM2.5" in line]
    assert "-1.000 persistence" in rows[0]
    assert "+0.500 persistence" in rows[1]
    (row,) = [line for line in printed(scores) if "ozone" in line and " 24 h " in line]
    assert "-3.000 climatology" in row


def test_every_further_forecast_has_a_column_and_is_compared(scores: xr.Dataset) -> None:
    with_cams = np.concatenate(
        [scores["rmse"].transpose("forecast", "horizon", "pollutant"), np.full((1, 4, 6), 50.0)]
    )
    more = scores_with_rmse(with_cams, (*FORECASTS, "cams_with_a_long_name"))
    assert len(score_table(more).columns) == len(score_table(scores).columns) + 1
    assert table_width(scores) == TABLE_WIDTH < table_width(more)
    lines = printed(more, table_width(more))
    rows = [line for line in lines if " h " in line]
    # Persistence is as good for six pairs, climatology is better for ozone at the other three horizons.
    assert sum("-1.000 cams_with_a_long_name" in row for row in rows) == 24 - 6 - 3
    assert not any("…" in line for line in lines)


def test_the_summary_counts_strict_wins_only(scores: xr.Dataset) -> None:
    wins = {"persistence": 17, "climatology": 20}
    over = ", ".join(f"{name} in {wins.get(name, 24)}" for name in BASELINES)
    assert summary(scores) == (
        f"Of 24 pollutant-horizon pairs the model has a lower RMSE than {over}, and than all in 14."
    )


def test_the_summary_gives_the_squared_error_over_all_relative_to_each_baseline(scores: xr.Dataset) -> None:
    deviations = dict.fromkeys(TARGET_VARIABLES, 50.0) | {"o3": 100.0}
    text = summary(scores.assign_attrs(standard_deviations=deviations))
    own = (5 * 2.0**2 + 1.0**2) / 6  # RMSE 100 in all pairs
    assert f"in standard deviations of the training years: {own:.4f}; " in text
    rmse = scores["rmse"].sel(forecast="climatology")
    other = np.mean(
        [float((rmse.sel(pollutant=name) ** 2).mean()) / deviations[name] ** 2 for name in deviations]
    )
    assert f"{own / other:.3f} of climatology" in text


def test_pairs_without_data_are_dashes_and_are_counted() -> None:
    rmse = np.ones((len(FORECASTS), 4, 6))
    rmse[2, 2:, 0] = np.nan
    scores = scores_with_rmse(rmse)
    dashes = [line.split().count("-") for line in printed(scores) if "PM2.5" in line]
    assert dashes == [1, 1, *[len(FORECASTS) + 3] * 2]  # the ACC; or every RMSE, skill, ACC and bias
    assert summary(scores).endswith("and than all in 0; 2 more have no data.")
