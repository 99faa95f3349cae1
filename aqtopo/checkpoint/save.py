"""Saving a training state: DeepSpeed's shards from all ranks, full weights and a description from rank 0."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from aqtopo.checkpoint.tags import CHECKPOINTS, Tag, list_tags, write_state
from aqtopo.checkpoint.weights import WEIGHTS_FILE
from aqtopo.config import CheckpointConfig


def save(engine: Any, run_dir: Path, tag: Tag, policy: CheckpointConfig, barrier: Callable[[], None]) -> None:
    """Save the state of all ranks under `tag` and drop the states that are no longer wanted.

    Args:
        engine: the DeepSpeed engine, at an accumulation boundary.
        run_dir: the run directory.
        tag: what is saved.
        policy: which states are kept.
        barrier: waits for all ranks.
    """
    engine.save_checkpoint(str(run_dir / CHECKPOINTS), tag=tag.name)
    if engine.global_rank == 0:
        weights = {name: tensor.float().contiguous().cpu() for name, tensor in _weights(engine).items()}
        save_file(weights, tag.folder(run_dir) / WEIGHTS_FILE)
        write_state(tag, run_dir)  # last: it makes the folder a tag
        _prune(run_dir, policy)
    barrier()


def _weights(engine: Any) -> dict[str, Any]:
    """Weights and persistent buffers as the forward pass uses them, by name; equal on all ranks in ZeRO-2."""
    state: dict[str, Any] = engine.module.state_dict()
    return state


def _prune(run_dir: Path, policy: CheckpointConfig) -> None:
    """Keep the last state, those with the lowest validation loss and every so many steps' one."""
    tags = list_tags(run_dir)
    validated = [tag for tag in tags if tag.val_loss is not None]
    best = sorted(validated, key=lambda tag: tag.val_loss or 0.0)[: policy.keep_best]
    periodic = [tag for tag in tags if policy.every_steps and tag.step % policy.every_steps == 0]
    kept = {tag.name for tag in [*best, *periodic, *tags[-1:]]}
    for tag in tags:
        if tag.name not in kept:
            shutil.rmtree(tag.folder(run_dir))
