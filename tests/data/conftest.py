"""A copy of the tiny store that a test may damage."""

import shutil
from pathlib import Path

import pytest
import zarr


@pytest.fixture
def damaged(tiny_store: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny store."""
    copy = tmp_path / "damaged.zarr"
    shutil.copytree(tiny_store, copy)
    return copy


@pytest.fixture
def with_blh(damaged: Path) -> Path:
    """A private copy of the tiny store with a channel that has no published mean and deviation."""
    group = zarr.open_group(damaged, mode="r+")
    group["channel"][4] = "blh"  # type: ignore[index]
    given = {"long_name": "height", "units": "m", "valid_range": [0.0, 2e5]}
    group["fields"].attrs.update({f"channel_{key}": {"blh": value} for key, value in given.items()})
    return damaged
