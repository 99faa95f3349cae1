"""The tables that an evaluation leaves, and what may become of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.evaluation.results import read_table, write_tables

TABLE = xr.Dataset({"squared": (("day", "area"), np.arange(600.0).reshape(20, 30))})


def chunk(group: Path) -> Path:
    return next(path for path in (group / "squared" / "c").rglob("*") if path.is_file())


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage",
    [
        lambda group: cut_short(group / "zarr.json"),
        lambda group: (group / "squared" / "zarr.json").write_text("[]"),
        lambda group: cut_short(chunk(group)),
    ],
    ids=["group", "array", "chunk"],
)
def test_a_damaged_table_is_named_with_the_remedy(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(write_tables({"by_day": TABLE}, tmp_path) / "by_day")
    with pytest.raises(ValueError, match=r"by_day of \S+scores\.zarr cannot be read .*`aqtopo evaluate"):
        read_table(tmp_path, "by_day")


def test_a_table_that_was_not_made_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scores\.zarr has no table by_day\. Score the run with `aqtopo"):
        read_table(tmp_path, "by_day")
    write_tables({"by_day": TABLE}, tmp_path)
    with pytest.raises(ValueError, match="has no table stations"):
        read_table(tmp_path, "stations")
