"""Saving a training state: DeepSpeed's shards from all ranks, full weights and a description from rank 0."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from aqtopo.checkpoint.tags import CHECKPOINTS, Tag, list_tags, write_state
from aqtopo.checkpoint.weights import WEIGHTS_FILE


def save(engine: Any, run_dir: Path, tag: Tag, keep_best: int, barrier: Callable[[], None]) -> None:
    """Save the state of all ranks under `tag` and drop the states that are no longer wanted.

    Args:
        engine: the DeepSpeed engine, at an accumulation boundary.
        run_dir: the run directory.
        tag: what is saved.
        keep_best: states with the lowest validation loss to keep, beside the last.
        barrier: waits for all ranks.
    """
    engine.save_checkpoint(str(run_dir / CHECKPOINTS), tag=tag.name)
    if engine.global_rank == 0:
        weights = {name: tensor.float().contiguous().cpu() for name, tensor in _weights(engine).items()}
        save_file(weights, tag.folder(run_dir) / WEIGHTS_FILE)
        write_state(tag, run_dir)  # last: it makes the folder a tag
        _prune(run_dir, keep_best)
    barrier()


def _weights(engine: Any) -> dict[str, Any]:
    """Weights and persistent buffers as the forward pass uses them, by name; equal on all ranks in ZeRO-2."""
    state: dict[str, Any] = engine.module.state_dict()
    return state


def _prune(run_dir: Path, keep_best: int) -> None:
    """Keep the last state and those with the lowest validation loss."""
    tags = list_tags(run_dir)
    validated = sorted((tag for tag in tags if tag.val_loss is not None), key=lambda tag: tag.val_loss or 0.0)
    kept = {tag.name for tag in [*validated[:keep_best], *tags[-1:]]}
    for tag in tags:
        if tag.name not in kept:
            shutil.rmtree(tag.folder(run_dir))
