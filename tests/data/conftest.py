"""A copy of the tiny store that a test may damage."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def damaged(tiny_store: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny store."""
    copy = tmp_path / "damaged.zarr"
    shutil.copytree(tiny_store, copy)
    return copy
