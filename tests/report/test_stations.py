import re
from pathlib import Path

import numpy as np
import pytest

from aqtopo.evaluation.results import write_tables
from aqtopo.report.base_map import Canvas
from aqtopo.report.stations import MAX_ROWS, station_scores

from .conftest import station_sums

CHINA = Canvas(np.linspace(17.5, 48.5, 32), np.linspace(72.5, 135.5, 64))


def test_observed_pollutants_have_maps_and_a_table_from_best_to_worst(tmp_path: Path) -> None:
    write_tables({"stations": station_sums(5)}, tmp_path)
    scores = station_scores(tmp_path, CHINA)
    assert scores is not None
    assert [pollutant.name for pollutant in scores.pollutants] == ["pm25", "o3"]
    assert (scores.stations, scores.left_out) == (5, "2 outside the grid")
    pm25 = scores.pollutants[0]
    (rows,) = pm25.groups
    skills = [row.cells[0][0].skill for row in rows]
    assert skills == sorted(skills, reverse=True)
    assert len(rows) == 5
    assert re.fullmatch(r"\d\d\.\d°N \d+\.\d°E", rows[0].place)
    _, rmse, bias = rows[0].cells[0]
    assert float(rmse) > 0
    assert bias[0] in "+\N{MINUS SIGN}"
    first = pm25.horizons[0]
    assert sum(path.count("M") for _, path in first.skill) == 5
    better = sum(skill > 0 for skill in skills)
    assert first.sentence.startswith(
        f"12 h ahead the model is better than all baselines at {better} of 5 stat"
    )


@pytest.mark.parametrize("stations", [1, 300])
def test_few_stations_and_hundreds_have_a_table_that_can_be_read(tmp_path: Path, stations: int) -> None:
    write_tables({"stations": station_sums(stations)}, tmp_path)
    scores = station_scores(tmp_path, CHINA)
    assert scores is not None
    groups = scores.pollutants[0].groups
    assert sum(map(len, groups)) == min(stations, MAX_ROWS)
    assert scores.pollutants[0].rows_of == stations
    assert groups[0][0].cells[0][0].skill >= groups[-1][-1].cells[0][0].skill


def test_a_station_that_observed_nothing_at_a_horizon_has_no_dot_there(tmp_path: Path) -> None:
    sums = station_sums(3)
    sums["count"][0, 0, 1] = 0
    write_tables({"stations": sums}, tmp_path)
    scores = station_scores(tmp_path, CHINA)
    assert scores is not None
    at_12_h, at_24_h, *_ = scores.pollutants[0].horizons
    assert [sum(path.count("M") for _, path in each.bias) for each in (at_12_h, at_24_h)] == [3, 2]


def test_where_no_station_was_asked_for_there_are_none(tmp_path: Path) -> None:
    assert station_scores(tmp_path, CHINA) is None
