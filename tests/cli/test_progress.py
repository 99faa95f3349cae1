"""ProgressBar: a bar on a terminal, otherwise plain lines."""

import io

import pytest

from aqtopo.cli.progress import ProgressBar


class Terminal(io.StringIO):
    """A stream that reports that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Clock whose time is the only element of the list."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_plain_lines_come_every_five_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    show = ProgressBar()
    for done in range(9):
        show("forecasts", done, 8)
        clock[0] += 2.0
    assert capsys.readouterr().err.splitlines() == [
        "3/8 forecasts, 0.5/s, 00:10 left",
        "6/8 forecasts, 0.5/s, 00:04 left",
        "8/8 forecasts, 0.5/s, 00:00 left",
    ]


def test_new_count_restarts_the_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    show = ProgressBar()
    show("hours", 0, 10)
    clock[0] += 10.0
    show("hours", 10, 10)
    show("forecasts", 0, 4)
    clock[0] += 10.0
    show("forecasts", 2, 4)
    assert capsys.readouterr().err.splitlines() == [
        "10/10 hours, 1.0/s, 00:00 left",
        "2/4 forecasts, 0.2/s, 00:10 left",
    ]


def test_terminal_shows_one_bar_per_count(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    show = ProgressBar()
    show("hours", 5, 10)
    show("forecasts", 4, 4)
    text = terminal.getvalue()
    assert "hours:" in text
    assert "forecasts: 100%" in text
    assert "left" not in text
