"""The manifest's seal, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.checkpoint.manifest import Manifest, read_manifest, write_manifest
from aqtopo.refusal import RefusedError


@pytest.fixture
def folder(tmp_path: Path, plain_manifest: Callable[..., Manifest]) -> Path:
    folder = tmp_path / "epoch00-step000001"
    folder.mkdir()
    rates, losses = {"all": 1 / 3}, {"running": float("nan"), "probe": 0.3}
    write_manifest(plain_manifest(folder.name, next_lrs=rates, **losses), folder)
    return folder


def test_numbers_come_back_to_the_bit_and_nan_as_none(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.run.next_lrs["all"] == 1 / 3
    assert manifest.run.losses.running is None
    assert manifest.run.losses.probe == 0.3


def test_every_single_flipped_bit_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 32) if place % 3 else range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit if bit < 8 else bit
            path.write_bytes(damaged)
            with pytest.raises(RefusedError, match=r"manifest\.json"):
                read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 2}'])
def test_other_content_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RefusedError, match=r"manifest\.json is damaged or not of schema 1"):
        read_manifest(folder)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="so its files cannot be checked"):
        read_manifest(tmp_path)
