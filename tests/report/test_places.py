from pathlib import Path

import pytest

from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.report.canvas import Canvas
from aqtopo.report.case import load_case
from aqtopo.report.places import Place, parse_place, tokens_at


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


def test_a_place_is_read_with_its_name() -> None:
    assert parse_place("Foot of the ridge=30,-103.5") == Place("Foot of the ridge", 30.0, -103.5)


@pytest.mark.parametrize("text", ["Lanzhou", "Lanzhou=36.1", "Lanzhou=north,east", "36.1,103.8"])
def test_what_is_no_place_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"Lanzhou=36\.1,103\.8"):
        parse_place(text)


def test_wanted_places_come_before_the_cities(run: LoadedRun) -> None:
    canvas = Canvas(run.store.lat, run.store.lon)
    # Cells are 4 degrees from each other, from 20 N and 74 E on; a token is 2 x 2 of them, 8 in a row.
    wanted = [Place("corner", 20.5, 78.1), Place("Lhasa", 47.9, 134.0)]
    names = list(tokens := tokens_at(run, load_case(run), canvas, wanted))
    assert names[:4] == ["Most polluted", "corner", "Lhasa", "Beijing"]
    assert tokens["corner"] == 0
    assert tokens["Lhasa"] == 4 * 8 - 1  # the place that was asked for, not the city


@pytest.mark.parametrize("names", [("corner", "corner"), ("Most polluted",)])
def test_a_name_that_is_taken_is_refused(run: LoadedRun, names: tuple[str, ...]) -> None:
    canvas = Canvas(run.store.lat, run.store.lon)
    with pytest.raises(ValueError, match=f"--place {names[0]}: the name is taken"):
        tokens_at(run, load_case(run), canvas, [Place(name, 20.5, 78.1) for name in names])


def test_a_place_off_the_grid_is_refused(run: LoadedRun) -> None:
    canvas = Canvas(run.store.lat, run.store.lon)
    with pytest.raises(ValueError, match=r"--place Paris=48\.9,2\.35 is not on the grid"):
        tokens_at(run, load_case(run), canvas, [Place("Paris", 48.9, 2.35)])
