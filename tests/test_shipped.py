"""Folders that the wheel carries; test_wheel.py tests those of the wheel."""

from pathlib import Path

import pytest

from aqtopo.shipped import shipped_folder

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["ds_configs", "slurm"])
def test_a_checkout_has_its_folders_beside_the_package(name: str) -> None:
    assert shipped_folder(name) == ROOT / name
    assert shipped_folder(name).is_dir()
