"""Shards that ZeRO-2 saved, one file per rank, read as whole tensors by parameter name.

A group's parameters are concatenated in a flat buffer, padded to a multiple of 2 W elements; rank r owns
the r-th of W equal parts. With n elements a part has p = 2 ceil(n / 2W) elements, and a rank r with r p >= n
owns only padding. Source: DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py`
(nccl_start_alignment_factor).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aqtopo.checkpoint.files import load_torch, refused_contents
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, Manifest
from aqtopo.distributed.process_group import RankGroup, shard
from aqtopo.refusal import RefusedError, raise_problems

ALIGNMENT = 2
SHARD_NAME = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
MODEL_STATES = "mp_rank_00_model_states.pt"
"""File of DeepSpeed's counters."""
MASTER = "fp32"
KINDS = (MASTER, "exp_avg", "exp_avg_sq")
"""Kinds of tensors of every trained parameter: the fp32 weight and Adam's two moments."""


class NamedTensors(Protocol):
    """A state whose tensors are addressed by parameter name."""

    def tensor(self, name: str, kind: str) -> Tensor:
        """Return the whole fp32 tensor of a parameter: its weight or a moment."""


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one parameter that one rank owns.

    Attributes:
        name: the parameter.
        start: first element, in the flattened parameter.
        length: elements; at least 1.
        offset: first element, in the rank's part of the group.
    """

    name: str
    start: int
    length: int
    offset: int

    @property
    def in_parameter(self) -> slice:
        """The elements in the flattened parameter."""
        return slice(self.start, self.start + self.length)

    @property
    def in_part(self) -> slice:
        """The elements in the rank's part of the group."""
        return slice(self.offset, self.offset + self.length)


def part_size(elements: int, world: int) -> int:
    """Return the number of elements in each rank's part of a group, padding included."""
    return -(-elements // (ALIGNMENT * world)) * ALIGNMENT


def fragments(elements: Mapping[str, int], world: int, rank: int) -> Iterator[Fragment]:
    """Yield the fragments of a group that `rank` of `world` owns.

    `elements` are the numbers of elements by parameter name, in the group's order.
    """
    size = part_size(sum(elements.values()), world)
    first, end, position = rank * size, (rank + 1) * size, 0
    for name, count in elements.items():
        begin, stop = max(first, position), min(end, position + count)
        if begin < stop:
            yield Fragment(name, begin - position, stop - begin, begin - first)
        position += count


def owners(elements: Mapping[str, int], world: int, name: str) -> Iterator[tuple[int, Fragment]]:
    """Yield the fragments of one parameter of a group in order, each with the rank that owns it."""
    size, before = part_size(sum(elements.values()), world), 0
    for other, count in elements.items():
        if other == name:
            break
        before += count
    position, end = before, before + elements[name]
    while position < end:
        rank, offset = divmod(position, size)
        length = min(end - position, size - offset)
        yield rank, Fragment(name, position - before, length, offset)
        position += length


class ShardedState:
    """A saved state in ZeRO-2's layout.

    Raises:
        RefusedError: the manifest does not list exactly the shards of ranks 0 to W - 1.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._groups = {
            name: (index, group) for index, group in enumerate(manifest.groups) for name in group.elements
        }
        found = {int(match[1]): name for name in manifest.files if (match := SHARD_NAME.fullmatch(name))}
        shards = sum(SHARD_NAME.fullmatch(name) is not None for name in manifest.files)
        if sorted(found) != list(range(manifest.world_size)) or shards != manifest.world_size:
            raise RefusedError(
                f"{folder} was saved by {manifest.world_size} ranks, but its manifest lists {shards} shards, "
                f"of ranks {sorted(found)}. Resume from another tag."
            )
        self._files = found
        self._loaded: dict[int, dict[str, Any]] = {}

    def tensor(self, name: str, kind: str) -> Tensor:
        """Assemble the whole fp32 tensor of a parameter (weight or moment) from the ranks' fragments."""
        index, group = self._groups[name]
        with refused_contents(self.folder):
            parts = [
                self._part(rank, index, kind)[fragment.in_part]
                for rank, fragment in owners(group.elements, self.manifest.world_size, name)
            ]
            return torch.cat(parts).float().reshape(self.manifest.parameters[name].shape)

    def check(self, ranks: RankGroup) -> None:
        """Compare the counters and step counts with the manifest; the ranks share the shards.

        Raises:
            RefusedError: a value differs, or a file cannot be loaded.
        """
        check_counters(self.folder, self.manifest)
        for index, group in enumerate(self.manifest.groups):
            expected = self.manifest.optimizer_steps[group.name]
            for rank in shard(sorted(self._files), ranks):
                with refused_contents(self.folder / self._files[rank]):
                    counted = float(self._shard(rank)["base_optimizer_state"]["state"][index]["step"])
                if counted != expected:
                    raise RefusedError(
                        f"{self.folder}: rank {rank} counted {counted:g} steps for group {group.name}, but "
                        f"the manifest says {expected:g}. Resume from another tag."
                    )

    def _part(self, rank: int, index: int, kind: str) -> Tensor:
        with refused_contents(self.folder / self._files[rank]):
            content = self._shard(rank)
            if kind == MASTER:
                part: Tensor = content["single_partition_of_fp32_groups"][index].detach()
            else:
                part = content["base_optimizer_state"]["state"][index][kind]
            return part

    def _shard(self, rank: int) -> dict[str, Any]:
        """Return a rank's shard; it is memory-mapped, so keeping it open takes no memory."""
        if rank not in self._loaded:
            path = self.folder / self._files[rank]
            with refused_contents(path):
                self._loaded[rank] = load_torch(path)["optimizer_state_dict"]
        return self._loaded[rank]


def check_counters(folder: Path, manifest: Manifest) -> None:
    """Compare the counters that DeepSpeed saved in a folder with its manifest.

    Raises:
        RefusedError: a counter differs, or the file cannot be loaded.
    """
    path = folder / MODEL_STATES
    counters = load_torch(path)
    for name, value in manifest.counters.items():
        with refused_contents(path):
            found, equal = counters.get(name), bool(counters.get(name) == value)
        if not equal:
            raise RefusedError(f"{path}: {name} is {found}, but the manifest says {value}.")


def check_weights(folder: Path, manifest: Manifest) -> None:
    """Compare names and shapes in the weights file of a folder with its manifest; reads its header only.

    Raises:
        RefusedError: they differ, or the file cannot be read.
    """
    path, expected = folder / WEIGHTS_FILE, manifest.module_tensors
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RefusedError(f"{path} cannot be read: {error}. Resume from another tag.") from error
    problems = [
        f"{name}: {'missing in' if name in expected else 'unexpected in'} {WEIGHTS_FILE}"
        for name in sorted(expected.keys() ^ found.keys())
    ]
    problems += [
        f"{name}: shape {list(found[name])} in {WEIGHTS_FILE}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name].shape
    ]
    raise_problems(f"{folder} is damaged", problems, "Resume from another tag.")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors hold the same bits: NaN equals itself, and 0 differs from -0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_as_integers(one), _as_integers(other))


def _as_integers(tensor: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer)
