"""Reading the shards that ZeRO-2 saved, one file a rank, as whole tensors by parameter name."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqtopo.checkpoint.manifest import Manifest
from aqtopo.checkpoint.partition import owners
from aqtopo.checkpoint.pickles import load_data
from aqtopo.checkpoint.ranks import Ranks, share
from aqtopo.refusal import RefusedError

SHARD_NAME = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
MASTER = "fp32"
KINDS = (MASTER, "exp_avg", "exp_avg_sq")
"""What is kept for every trained element: the fp32 weight and Adam's two moments."""


class ShardedState:
    """A saved state as ZeRO-2 laid it out.

    Args:
        folder: the tag's folder.
        manifest: its manifest.

    Raises:
        RefusedError: the shards are not those of ranks 0 to W - 1.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
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
        """The whole fp32 tensor of one parameter: its weight or one of its moments."""
        info = self._manifest.parameters[name]
        return self.elements(name, kind, slice(0, info.elements)).reshape(info.shape)

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        """Consecutive elements of a parameter's flattened fp32 weight or moment; reads only those."""
        index, group = self._groups[name]
        found = torch.empty(place.stop - place.start, dtype=torch.float32)
        for rank, fragment in owners(group.elements, self._manifest.world_size, name):
            first, end = max(fragment.start, place.start), min(fragment.in_parameter.stop, place.stop)
            if first < end:
                part = self._part(rank, index, kind)[fragment.in_part]
                found[first - place.start : end - place.start] = part[
                    first - fragment.start : end - fragment.start
                ]
        return found

    def check_steps(self, ranks: Ranks) -> None:
        """Make sure that this rank's share of the shards counts as many updates as the manifest says.

        Raises:
            RefusedError: some rank did not.
        """
        for index, group in enumerate(self._manifest.groups):
            expected = self._manifest.optimizer_steps[group.name]
            for rank in share(sorted(self._files), ranks):
                counted = float(self._shard(rank)["base_optimizer_state"]["state"][index]["step"])
                if counted != expected:
                    raise RefusedError(
                        f"{self._folder}: rank {rank} counted {counted:g} steps for group {group.name}, but "
                        f"the manifest says {expected:g}. Resume from another tag."
                    )

    def _part(self, rank: int, index: int, kind: str) -> Tensor:
        shard = self._shard(rank)
        if kind == MASTER:
            part: Tensor = shard["single_partition_of_fp32_groups"][index].detach()
        else:
            part = shard["base_optimizer_state"]["state"][index][kind]
        return part

    def _shard(self, rank: int) -> dict[str, Any]:
        """A rank's shard; its tensors stay on the disk until read, so that keeping it costs nothing."""
        if rank not in self._loaded:
            self._loaded[rank] = load_data(self._folder / self._files[rank])["optimizer_state_dict"]
        return self._loaded[rank]
