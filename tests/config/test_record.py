"""Files that aqtopo wrote, and what may have become of them."""

import json
from pathlib import Path

import pytest

from aqtopo.config.record import Record, read_record
from aqtopo.config.strict import Positive


class Part(Record):
    """A part."""

    size: Positive
    """Size of the part."""


class Whole(Record):
    """The whole."""

    name: str
    """Name of the whole."""
    parts: tuple[Part, ...]
    """In order."""
    by_place: dict[str, Part] | None = None
    """Parts by place."""


def read(folder: Path, content: object) -> Whole:
    path = folder / "whole.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_record(path, Whole, "Write it again.")


def test_what_was_written_is_read_with_what_a_later_version_added(tmp_path: Path) -> None:
    content = {"name": "n", "parts": [{"size": 2, "colour": "red"}], "by_place": {}, "later": [1]}
    assert read(tmp_path, content).model_dump(mode="json") == content


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "is not JSON (EOF while parsing"),
        ('{"name": "n"', "is not JSON (EOF while parsing an object"),
        ("[]", "does not hold one JSON object"),
        ({"name": "n"}, "parts: missing, and required (in order)"),
        ({"name": 1, "parts": []}, "name = 1: must be a string"),
        ({"name": "n", "parts": {}}, "parts = {}: must be a list"),
        ({"name": "n", "parts": [{"size": 1}, {"size": "2"}]}, 'parts[1].size = "2": must be a whole number'),
        ({"name": "n", "parts": [], "by_place": {"a b": {}}}, 'by_place."a b".size: missing, and required'),
        ('{"name": "n", "parts": [{"size": NaN}]}', "parts[0].size = NaN: must be a"),
    ],
)
def test_a_fault_is_named_with_its_place_and_the_remedy(tmp_path: Path, content: object, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^.+whole\.json") as caught:
        read(tmp_path, content)
    assert fault in str(caught.value)
    assert str(caught.value).endswith("Write it again.")


def test_the_first_faults_stand_for_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts\[2\]\.size: missing.*\nand 5 more\nWrite it again\.$"):
        read(tmp_path, {"name": "n", "parts": [{}] * 8})


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whole\.json is missing\. Write it\.$"):
        read_record(tmp_path / "whole.json", Whole, "Write it.")
