"""Arguments of `aqtopo fault-test`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.parametrize("worlds", ["a,b", "2,,1", "", "2;1", "2,1.5", "0", "2,-1"])
def test_invalid_worlds_are_named(aqtopo: Command, tmp_path: Path, worlds: str) -> None:
    complaint = aqtopo("fault-test", tmp_path / "config.json", "--worlds", worlds).complaint
    assert f"--worlds {worlds!r}" in complaint
    assert "numbers of ranks with commas between them, such as 2,1,3" in complaint
