import io

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from aqtopo.evaluation.points import FORECASTS
from aqtopo.evaluation.tables import TABLE_WIDTH, score_table, summary
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

from .made import scores_of_batches


def scores_with_rmse(rmse: np.ndarray) -> xr.Dataset:
    """Scores of six pollutants and four horizons from RMSE (F, K, C), one point each."""
    wide = rmse[:, None, :, :, None, None]
    batch = dict(zip(FORECASTS, wide, strict=True)), np.zeros(wide.shape[1:]), np.ones(wide.shape[1:], bool)
    scores = scores_of_batches(batch, pollutants=TARGET_VARIABLES, horizons_h=HORIZONS_H)
    scores = scores.assign_coords(units=("pollutant", ["ug m-3"] * 6))
    head = {"run": "demo", "tag": "epoch02-step000100", "split": "test", "years": [2017, 2018]}
    return scores.assign_attrs(head, initialisations=1096)


@pytest.fixture
def scores() -> xr.Dataset:
    """The model wins everywhere but: persistence at 12 h, climatology for ozone, a tie for SO2 at 96 h."""
    rmse = np.ones((3, 4, 6)) * np.array([100.0, 200.0, 300.0])[:, None, None]
    rmse[1, 0] = 50.0
    rmse[2, :, TARGET_VARIABLES.index("o3")] = 25.0
    rmse[1, 3, TARGET_VARIABLES.index("so2")] = 100.0
    return scores_with_rmse(rmse)


def printed(scores: xr.Dataset) -> list[str]:
    buffer = io.StringIO()
    Console(file=buffer, width=TABLE_WIDTH).print(score_table(scores))
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
    assert "-1.000" in rows[0]
    assert "+0.667" in rows[0]
    assert "+0.500" in rows[1]


def test_the_summary_counts_strict_wins_only(scores: xr.Dataset) -> None:
    assert summary(scores) == (
        "Of 24 pollutant-horizon pairs the model has a lower RMSE than persistence in 17, climatology in 20, "
        "and than both in 14."
    )


def test_pairs_without_data_are_dashes_and_are_counted() -> None:
    rmse = np.ones((3, 4, 6))
    rmse[2, 2:, 0] = np.nan
    scores = scores_with_rmse(rmse)
    assert [line.count(" - ") for line in printed(scores) if "PM2.5" in line] == [1, 1, 8, 8]
    assert summary(scores).endswith("and than both in 0; 2 more have no data.")
