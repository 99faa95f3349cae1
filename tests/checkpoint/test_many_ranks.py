"""Four hundred ranks, simulated: the arithmetic of 400 applied to files that two ranks saved."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from aqtopo.checkpoint.convert import _own_parameters, open_universal
from aqtopo.checkpoint.manifest import Manifest
from aqtopo.checkpoint.partition import fragments, part_size
from aqtopo.checkpoint.ranks import ALONE, Alone
from aqtopo.checkpoint.restore import read_weights, restore_engine
from aqtopo.checkpoint.shards import KINDS
from aqtopo.checkpoint.universal import UniversalState

from .test_damage import saved
from .test_restore import tag_folder

__all__ = ["saved"]

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


def test_conversion_deals_every_parameter_to_one_rank(saved: Path) -> None:
    state = UniversalState(open_universal(tag_folder(saved), ALONE).folder)
    dealt = [name for rank in range(WORLD) for name in _own_parameters(state.manifest, Alone(rank, WORLD))]
    assert sorted(dealt) == sorted(state.manifest.parameters)
