"""Names from files reach the terminal without control characters."""

import io
import json
from pathlib import Path

import pytest

from aqtopo.checkpoint.tags import CHECKPOINTS
from aqtopo.cli.terminal import EscapedStream

from .conftest import Command

NAME = "epoch\x1b[2J\x1b]0;title\x07\u202e"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m\tµg m⁻³\n", "\x1b[1;31mred\x1b[0m\tµg m⁻³\n"),
        (NAME, r"epoch\x1b[2J\x1b]0;title\x07\u202e"),
        ("a\rb\x08c\x9b2Jd", r"a\rb\x08c\x9b2Jd"),
        ("name\udcff", r"name\udcff"),
    ],
)
def test_only_colours_are_written_as_they_are(text: str, expected: str) -> None:
    stream = io.StringIO()
    EscapedStream(stream).write(text)
    assert stream.getvalue() == expected


def test_progress_bars_keep_the_carriage_return() -> None:
    stream = io.StringIO()
    EscapedStream(stream, progress=True).write("\r50%\r\x0b")
    assert stream.getvalue() == "\r50%\r\\x0b"


def test_names_of_folders_are_escaped_in_a_table(aqtopo: Command, untrained_run: Path) -> None:
    (untrained_run / CHECKPOINTS / NAME).mkdir()
    (untrained_run / CHECKPOINTS / "[bold]x[red]:smile:").mkdir()
    ended = aqtopo("checkpoint", "ls", untrained_run)
    assert ended.code == 0
    assert r"epoch\x1b[2J" in ended.out
    assert "\x1b" not in ended.out
    assert "[bold]x[red]:smile:" in ended.out
    rows = json.loads(aqtopo("checkpoint", "ls", untrained_run, "--json").out)
    assert NAME in {row["name"] for row in rows}


def test_names_in_an_error_are_escaped(aqtopo: Command, tmp_path: Path) -> None:
    complaint = aqtopo("data", "info", tmp_path / NAME).complaint
    assert r"\x1b[2J\x1b]0;title\x07\u202e" in complaint
    assert "\x1b" not in complaint
