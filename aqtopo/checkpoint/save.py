"""Saving a training state: aside, from all ranks, and committed by one rename.

    <tag>.tmp: shards (by DeepSpeed), weights -> sync, hashes -> manifest -> rename to <tag> -> pointer

A process killed anywhere before the rename leaves only a `.tmp`, which the next start removes; one killed
after it leaves a complete tag.
"""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from aqtopo.checkpoint.engine_state import describe_engine
from aqtopo.checkpoint.files import FileRecord, describe_file, sync
from aqtopo.checkpoint.manifest import RunFacts, write_manifest
from aqtopo.checkpoint.pickles import without_checksums
from aqtopo.checkpoint.ranks import Ranks, gather_mappings
from aqtopo.checkpoint.retention import prune
from aqtopo.checkpoint.shards import SHARD_NAME
from aqtopo.checkpoint.tags import (
    NAME_PATTERN,
    UNFINISHED,
    Tag,
    point_to,
    write_state,
)
from aqtopo.checkpoint.weights import WEIGHTS_FILE
from aqtopo.config import CheckpointConfig

RECOVERY_SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")
"""Copied beside every checkpoint by DeepSpeed."""


def save(
    engine: Any, run_dir: Path, tag: Tag, facts: RunFacts, policy: CheckpointConfig, ranks: Ranks
) -> Tag:
    """Save the state of all ranks under `tag` and drop the states that are no longer wanted.

    Args:
        engine: the DeepSpeed engine, at an accumulation boundary.
        run_dir: the run directory.
        tag: what is saved.
        facts: what the engine does not know.
        policy: which states are kept.
        ranks: all of the engine's.

    Returns:
        The tag as committed: with another `take` where the name was already used.
    """
    tag = _unused(tag, run_dir, ranks)
    assert NAME_PATTERN.fullmatch(tag.name), tag.name
    aside = tag.folder(run_dir).with_name(tag.name + UNFINISHED)
    if ranks.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    with without_checksums():
        # The weights go into a file without pickle, once; DeepSpeed would add them to its own.
        extras: dict[str, Any] = {"module": {}, "universal_checkpoint_info": {}}
        engine.save_checkpoint(str(aside.parent), tag=aside.name, client_state=extras, save_latest=False)
    if ranks.rank == 0:
        for script in RECOVERY_SCRIPTS:  # they load whatever code a checkpoint holds
            (aside.parent / script).unlink(missing_ok=True)
        save_file(module_weights(engine), aside / WEIGHTS_FILE)
        write_state(tag, run_dir, aside)
    own = {path.name: _settled(path) for path in _own_files(aside, ranks.rank)}
    records = gather_mappings(own, ranks)
    if ranks.rank == 0:
        files = {name: FileRecord(size, tuple(hashes)) for name, (size, hashes) in sorted(records.items())}
        write_manifest(describe_engine(engine, tag.name, facts, files), aside)
        aside.rename(tag.folder(run_dir))
        sync(aside.parent)
        point_to(tag, run_dir)
        prune(run_dir, policy)
    ranks.barrier()
    return tag


def module_weights(engine: Any) -> dict[str, Tensor]:
    """Weights and persistent buffers as the forward pass uses them, by name; equal on all ranks in ZeRO-2."""
    weights: dict[str, Tensor] = {}
    places: set[tuple[int, int]] = set()
    for name, tensor in engine.module.state_dict().items():
        value = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().cpu()
        place = value.data_ptr(), value.numel()
        # Tied weights lie in one place, and safetensors wants each name to have its own.
        weights[name] = value.clone() if place in places else value
        places.add(place)
    return weights


def _unused(tag: Tag, run_dir: Path, ranks: Ranks) -> Tag:
    """The tag under a name that has never been used in this run, the same on all ranks."""
    while tag.folder(run_dir).exists():
        tag = replace(tag, take=tag.take + 1)
    return replace(tag, take=max(int(take) for take in ranks.gather_texts(str(tag.take))))


def _own_files(folder: Path, rank: int) -> Iterable[Path]:
    """The files that this rank wrote: its shard, and on rank 0 what there is besides."""
    for path in sorted(folder.iterdir()):
        shard = SHARD_NAME.fullmatch(path.name)
        if (int(shard[1]) if shard else 0) == rank:
            yield path


def _settled(path: Path) -> tuple[int, tuple[str, ...]]:
    """Sync a file, read it once; size and hashes."""
    sync(path)
    record = describe_file(path)
    return record.size, record.sha256
