"""Simulation of 400 ranks on files that two ranks saved."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from aqtopo.checkpoint.inspection import open_state
from aqtopo.checkpoint.manifest import Manifest
from aqtopo.checkpoint.restore import read_weights, restore_engine
from aqtopo.checkpoint.shards import KINDS, fragments, part_size
from aqtopo.checkpoint.universal import STEP, UniversalState, assigned_files, open_universal
from aqtopo.config import load_config
from aqtopo.distributed.process_group import SINGLE_RANK, SingleRank
from aqtopo.model import Terrain, build_model
from aqtopo.training.resume import model_groups

from .conftest import tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]

WORLD = 400


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


def test_parts_of_400_ranks_form_the_whole_state(saved: Path) -> None:
    state = open_universal(tag_folder(saved), SINGLE_RANK)
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
    state = open_universal(tag_folder(saved), SINGLE_RANK)
    engine = OneRank(state.manifest, WORLD - 1).engine()
    restore_engine(engine, state, {name: name for name in state.manifest.parameters})
    for index, group in enumerate(state.manifest.groups):
        assert not list(fragments(group.elements, WORLD, WORLD - 1)) or group.name == "late"
        own = engine.optimizer.optimizer.state[engine.optimizer.single_partition_of_fp32_groups[index]]
        assert float(own["step"]) == 5.0
        assert set(own) == {"step", "exp_avg", "exp_avg_sq"}


def test_each_rank_reads_its_shard_of_the_weights_file(
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = open_universal(tag_folder(saved), SINGLE_RANK)
    size = (state.folder / "weights.safetensors").stat().st_size
    parts: list[Tensor] = []

    @dataclass(frozen=True)
    class Silent(SingleRank):
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
class CountedReads:
    """A state that counts the elements read."""

    state: UniversalState
    manifest: Manifest
    read: int = 0

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        self.read += place.stop - place.start
        return self.state.elements(name, kind, place)


def test_each_rank_restores_from_the_elements_that_it_owns_only(saved: Path) -> None:
    state = open_universal(tag_folder(saved), SINGLE_RANK)
    names = {name: name for name in state.manifest.parameters}
    for rank in range(WORLD):
        counted: Any = CountedReads(state, state.manifest)
        restore_engine(OneRank(state.manifest, rank).engine(), counted, names)
        own = [
            fragment.length
            for group in state.manifest.groups
            for fragment in fragments(group.elements, WORLD, rank)
        ]
        assert counted.read == len(KINDS) * sum(own)


@pytest.mark.parametrize("world", [1, 2, 3, WORLD])
def test_each_file_of_the_universal_layout_is_written_by_one_rank(saved: Path, world: int) -> None:
    manifest = open_state(tag_folder(saved)).manifest
    written = [file for rank in range(world) for file in assigned_files(manifest, SingleRank(rank, world))]
    assert written == [(name, kind) for name in manifest.parameters for kind in (*KINDS, STEP)]


def test_shares_of_52_million_parameters_are_balanced_among_400_ranks() -> None:
    config = load_config("ds_configs/resume_reference.json")
    with torch.device("meta"):
        groups = model_groups(config, build_model(config, Terrain.flat(config.data.grid)))
    parameters = {info.name: info for group in groups for info in group.parameters}
    assert len(parameters) == 91
    largest = max(info.elements for info in parameters.values())
    total = len(KINDS) * sum(info.elements for info in parameters.values())
    assert 4 * total / WORLD == pytest.approx(1.57e6, rel=0.01)
    manifest: Any = SimpleNamespace(parameters=parameters)
    for rank in range(WORLD):
        own = assigned_files(manifest, SingleRank(rank, WORLD))
        converted = sum(parameters[name].elements for name, kind in own if kind != STEP)
        restored = len(KINDS) * sum(
            fragment.length for group in groups for fragment in fragments(group.elements, WORLD, rank)
        )
        assert converted <= total / WORLD + largest
        # each group's part is padded to an even number of elements
        assert restored <= total / WORLD + len(KINDS) * 2 * len(groups)
