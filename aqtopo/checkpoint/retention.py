"""Which saved states are kept, and removing the others so that a crash never leaves half a tag."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from aqtopo.checkpoint.locks import alone, shared
from aqtopo.checkpoint.tags import (
    CHECKPOINTS,
    DISCARDED,
    STATE_FILE,
    UNFINISHED,
    UNIVERSAL,
    last_tag,
    list_tags,
)
from aqtopo.config import CheckpointConfig


def prune(run_dir: Path, policy: CheckpointConfig) -> None:
    """Keep the last state, those with the lowest validation loss and every so many steps' one."""
    tags = list_tags(run_dir)
    validated = [tag for tag in tags if tag.val_loss is not None]
    best = sorted(validated, key=lambda tag: (tag.val_loss or 0.0, tag.step))[: policy.keep_best]
    periodic = [tag for tag in tags if policy.every_steps and tag.step % policy.every_steps == 0]
    last = [tag for tag in (last_tag(run_dir),) if tag is not None]
    kept = {tag.name for tag in [*best, *periodic, *last, *tags[-1:]]}
    for tag in tags:
        if tag.name not in kept:
            _discard(tag.folder(run_dir))


def sweep(run_dir: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    for suffix in (UNFINISHED, DISCARDED):
        for leftover in (run_dir / CHECKPOINTS).glob(f"*{suffix}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for universal in (run_dir / CHECKPOINTS).glob(f"*{UNIVERSAL}"):
        if not universal.with_name(universal.name.removesuffix(UNIVERSAL)).exists():
            shutil.rmtree(universal)


def reading(folder: Path) -> AbstractContextManager[None]:
    """Keep a saved state from being removed while it is read; what no run prunes needs no keeping."""
    path = folder / STATE_FILE
    return shared(path) if path.is_file() else nullcontext()


def _discard(folder: Path) -> None:
    """Remove a state that nobody reads; first from the list, in one move, then from the disk."""
    with alone(folder / STATE_FILE) as held:
        if not held:
            return
        discarded = folder.with_name(folder.name + DISCARDED)
        folder.rename(discarded)
        shutil.rmtree(discarded)
        shutil.rmtree(folder.with_name(folder.name + UNIVERSAL), ignore_errors=True)
