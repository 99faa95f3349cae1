"""The manifest's seal, and what it refuses."""

from pathlib import Path

import pytest

from aqtopo.checkpoint.manifest import Losses, Manifest, Position, RunFacts, read_manifest, write_manifest
from aqtopo.refusal import RefusedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "epoch00-step000001"
    folder.mkdir()
    run = RunFacts(
        position=Position(epoch=0, step_in_epoch=1, step=1, next_samples=None),
        losses=Losses(train=0.1, running=float("nan"), probe=0.3, best_validation=None, validations_waited=0),
        next_lrs={"all": 1 / 3},
        seed=0,
        precision="fp32",
        config={"a": 1},
        config_digest="x",
        data_digest=None,
    )
    manifest = Manifest(
        schema=1,
        layout="sharded",
        tag=folder.name,
        run=run,
        groups=(),
        other_tensors=(),
        tied={},
        optimizer="AdamW",
        optimizer_steps={},
        zero_stage=2,
        world_size=2,
        global_samples=3,
        skipped_steps=0,
        loss_scaler=None,
        versions={},
    )
    write_manifest(manifest, folder)
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
    (folder / "manifest.json").write_text(text)
    with pytest.raises(RefusedError, match=r"manifest\.json is damaged or not of schema 1"):
        read_manifest(folder)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="nothing vouches for what is in it"):
        read_manifest(tmp_path)
