"""Four hundred ranks, simulated: the arithmetic of 400 applied to files that two ranks saved."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from aqtopo.checkpoint import tensor_files
from aqtopo.checkpoint.convert import NamedTensors, _create_tensor_files, open_universal
from aqtopo.checkpoint.files import BLOCK_BYTES
from aqtopo.checkpoint.inspection import open_state
from aqtopo.checkpoint.manifest import Manifest
from aqtopo.checkpoint.partition import fragments, part_size
from aqtopo.checkpoint.pickles import load_data
from aqtopo.checkpoint.ranks import ALONE, Alone, share_by_size
from aqtopo.checkpoint.restore import read_weights, restore_engine
from aqtopo.checkpoint.shards import KINDS
from aqtopo.checkpoint.tensor_files import ELEMENT_BYTES, Block, TensorFile, blocks_of, fill
from aqtopo.checkpoint.universal import tensor_file
from aqtopo.config import load_config
from aqtopo.model import Terrain, build_model
from aqtopo.training.resume import model_groups

from .conftest import tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]

WORLD = 400

BLOCK = 256
"""So small that the toy's files have as many blocks as 400 ranks can share [byte]."""


@dataclass
class OneRank:
    """A DeepSpeed engine as far as one rank's restore sees it."""

    manifest: Manifest
    rank: int
    world: int = WORLD
    counters: dict[str, int] = field(default_factory=dict)

    def engine(self) -> Any:
        groups = self.manifest.groups
        tensors = [[torch.empty(info.shape) for info in group.parameters] for group in groups]
        names = {
            tensor: info.name
            for group, own in zip(groups, tensors, strict=True)
            for info, tensor in zip(group.parameters, own, strict=True)
        }
        parts = [torch.zeros(part_size(sum(g.elements.values()), self.world)) for g in groups]
        base = torch.optim.AdamW(
            [{"params": [part], "name": g.name} for g, part in zip(groups, parts, strict=True)]
        )
        zero = SimpleNamespace(
            optimizer=base,
            bit16_groups=tensors,
            param_names=names,
            single_partition_of_fp32_groups=parts,
            update_lp_params=lambda: None,
        )
        return SimpleNamespace(optimizer=zero, world_size=self.world, global_rank=self.rank)


def test_400_ranks_together_hold_the_state_once(saved: Path) -> None:
    state = open_universal(tag_folder(saved), ALONE)
    names = {name: name for name in state.manifest.parameters}
    whole: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    engines = [OneRank(state.manifest, rank).engine() for rank in range(WORLD)]
    for engine in engines:
        restore_engine(engine, state, names)
        assert engine.global_steps == 5
    for index, group in enumerate(state.manifest.groups):
        for kind in KINDS:
            parts = [_held(engine.optimizer, index, kind) for engine in engines]
            flat = torch.cat(parts)
            position = 0
            for info in group.parameters:
                whole[kind][info.name] = flat[position : position + info.elements].reshape(info.shape)
                position += info.elements
            assert not flat[position:].any()
    for kind in KINDS:
        for name, tensor in whole[kind].items():
            assert torch.equal(tensor, state.tensor(name, kind))


def _held(zero: Any, index: int, kind: str) -> Tensor:
    part = zero.single_partition_of_fp32_groups[index]
    return part if kind == "fp32" else zero.optimizer.state[part][kind]


def test_ranks_without_elements_get_zero_moments_and_the_step(saved: Path) -> None:
    state = open_universal(tag_folder(saved), ALONE)
    engine = OneRank(state.manifest, WORLD - 1).engine()
    restore_engine(engine, state, {name: name for name in state.manifest.parameters})
    for index, group in enumerate(state.manifest.groups):
        assert not list(fragments(group.elements, WORLD, WORLD - 1)) or group.name == "late"
        own = engine.optimizer.optimizer.state[engine.optimizer.single_partition_of_fp32_groups[index]]
        assert float(own["step"]) == 5.0
        assert set(own) == {"step", "exp_avg", "exp_avg_sq"}


def test_each_rank_reads_its_share_of_weights_and_moments(
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = open_universal(tag_folder(saved), ALONE)
    size = (state.folder / "weights.safetensors").stat().st_size
    parts: list[Tensor] = []

    @dataclass(frozen=True)
    class Silent(Alone):
        def gather_parts(self, part: Tensor) -> Tensor:
            parts.append(part)
            return torch.cat(parts)

    whole = None
    for rank in range(WORLD - 1):
        monkeypatch.setattr("aqtopo.checkpoint.restore.load", lambda _: {})
        read_weights(state.folder, Silent(rank, WORLD))
    monkeypatch.undo()
    whole = read_weights(state.folder, Silent(WORLD - 1, WORLD))
    assert max(part.numel() for part in parts) == -(-size // WORLD)
    assert whole.keys() == state.manifest.module_tensors.keys()


@dataclass
class Counted:
    """A state that counts the bytes of the elements that are asked for."""

    state: NamedTensors
    manifest: Manifest
    folder: Path = Path()
    read: int = 0

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        self.read += ELEMENT_BYTES * (place.stop - place.start)
        return self.state.elements(name, kind, place)


def test_conversion_fills_every_block_on_one_rank_from_its_share_of_the_shards(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr("aqtopo.checkpoint.files.BLOCK_BYTES", BLOCK)
    tag = open_state(tag_folder(saved))
    manifest = tag.manifest
    files = _create_tensor_files(manifest, _folders(tmp_path, manifest), ALONE)
    blocks, filled, most = blocks_of(files), {}, 0
    for rank in range(WORLD):
        counted = Counted(tag.tensors, manifest)
        hashes = fill(tmp_path, counted, own_blocks(blocks, rank))
        for name, own in hashes.items():
            filled.update({(name, index): found for index, found in own.items()})
        most = max(most, counted.read)
    assert len(filled) == len(blocks)
    # Once to write, once to compare; a share, to within a block.
    assert most <= 2 * (sum(block.size for block in blocks) / WORLD + BLOCK)
    for name in manifest.parameters:
        for kind in KINDS:
            written = load_data(tmp_path / tensor_file(name, kind))["param"]
            assert torch.equal(written, tag.tensors.tensor(name, kind))


def own_blocks(blocks: list[Block], rank: int) -> list[Block]:
    return share_by_size(blocks, [block.size for block in blocks], Alone(rank, WORLD))


def _folders(folder: Path, manifest: Manifest) -> Path:
    for name in manifest.parameters:
        (folder / "zero" / name).mkdir(parents=True)
    return folder


def test_restoring_reads_the_elements_that_a_rank_owns_and_no_others(saved: Path) -> None:
    state = open_universal(tag_folder(saved), ALONE)
    names = {name: name for name in state.manifest.parameters}
    for rank in range(WORLD):
        counted: Any = Counted(state, state.manifest, state.folder)
        restore_engine(OneRank(state.manifest, rank).engine(), counted, names)
        own = [
            fragment.length
            for group in state.manifest.groups
            for fragment in fragments(group.elements, WORLD, rank)
        ]
        assert counted.read == len(KINDS) * ELEMENT_BYTES * sum(own)


def test_no_rank_of_400_reads_more_than_its_share_of_52_million_parameters() -> None:
    """By the arithmetic that the tests above hold to: all 91 tensors, each file's blocks shared out."""
    config = load_config("ds_configs/resume_reference.json")
    with torch.device("meta"):
        groups = model_groups(config, build_model(config, Terrain.flat(config.data.grid)))
    tensors = [info for group in groups for info in group.parameters]
    assert len(tensors) == 91
    total = len(KINDS) * ELEMENT_BYTES * sum(info.elements for info in tensors)
    words = 2048  # of a torch file besides its elements, more than there are
    files = [
        TensorFile(tensor_file(info.name, kind), info.name, kind, info.elements, words, size)
        for info in tensors
        for kind in KINDS
        for size in (ELEMENT_BYTES * info.elements + words,)
    ]
    blocks, shared = blocks_of(files), []
    for rank in range(WORLD):
        own = own_blocks(blocks, rank)
        converted = ELEMENT_BYTES * sum(block.place.stop - block.place.start for block in own)
        shared.append(len(own))
        restored = sum(
            len(KINDS) * ELEMENT_BYTES * fragment.length
            for group in groups
            for fragment in fragments(group.elements, WORLD, rank)
        )
        assert converted <= total / WORLD + BLOCK_BYTES
        # each group's part is filled up to an even number of elements
        assert restored <= total / WORLD + len(KINDS) * ELEMENT_BYTES * 2 * len(groups)
    assert total / WORLD == pytest.approx(1.57e6, rel=0.01)
    assert sum(shared) == len(blocks)
