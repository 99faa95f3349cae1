"""Saving a training state: aside, from all ranks, and committed by one rename.

    <tag>.tmp: shards (by DeepSpeed), weights -> [in the background] sync, hashes -> manifest
               -> rename to <tag> -> pointer -> pruning

Training waits for the first part only. A process killed anywhere before the rename leaves only a `.tmp`,
which the next start removes; one killed after it leaves a complete tag.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from aqtopo.checkpoint.commit import HASHES, PendingCommit
from aqtopo.checkpoint.engine_state import describe_engine
from aqtopo.checkpoint.files import FileRecord, sync, write_tensors
from aqtopo.checkpoint.manifest import Manifest, RunFacts, write_manifest
from aqtopo.checkpoint.ranks import Ranks
from aqtopo.checkpoint.retention import prune
from aqtopo.checkpoint.shards import SHARD_NAME, ShardedState
from aqtopo.checkpoint.tags import (
    NAME_PATTERN,
    UNFINISHED,
    Tag,
    next_tag,
    note_name,
    point_to,
    write_state,
)
from aqtopo.checkpoint.weights import WEIGHTS_FILE
from aqtopo.checkpoint.writing import write_shards, writing_together
from aqtopo.config import CheckpointConfig

GRACE_S = 60.0
"""How long a failing run waits for the state that is on its way."""


class Saver:
    """Saves the states of one run; the last one may still be on its way to being committed.

    As a context manager it does not leave before that is done, nor, after a failure, before some time.

    Args:
        run_dir: the run directory.
        policy: which states are kept.
        ranks: all of the run's.
        committed: called on rank 0, in the background, with every state that has become complete.
    """

    def __init__(
        self,
        run_dir: Path,
        policy: CheckpointConfig,
        ranks: Ranks,
        committed: Callable[[Tag], None] = lambda _: None,
    ) -> None:
        self._run_dir = run_dir
        self._committed = committed
        self._policy = policy
        self._ranks = ranks
        self._pending: PendingCommit | None = None

    def save(self, engine: Any, tag: Tag, facts: RunFacts) -> Tag:
        """Write the state of all ranks, which `finish` or the next `save` wait for to be committed.

        Args:
            engine: the DeepSpeed engine, at an accumulation boundary.
            tag: what is saved.
            facts: what the engine does not know.

        Returns:
            The tag with its number, and under its final name: with another `take` where that was used before.

        Raises:
            OSError: on all ranks: this state or the one before it could not be written.
        """
        self.finish()
        tag = self._named(tag)
        aside = self._aside(tag)
        self._write(engine, tag, aside)
        # Of this moment: when the background comes to it, the engine is steps ahead.
        manifest = describe_engine(engine, tag.name, facts, {})
        self._pending = PendingCommit(
            aside,
            list(_own_files(aside, self._ranks.rank)),
            lambda records: self._publish(tag, manifest, records, aside),
            self._ranks,
        )
        return tag

    @property
    def failed(self) -> bool:
        """Whether this rank already knows that the last state cannot be committed; `finish` says why."""
        return self._pending is not None and self._pending.failed

    def finish(self) -> None:
        """Wait, all ranks together, until the last saved state is committed.

        Raises:
            OSError: on all ranks: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.finish()

    def abandon(self) -> None:
        """Wait, without the other ranks and not for long, for the state that is on its way."""
        if self._pending is not None:
            self._pending.close(GRACE_S)

    def _named(self, tag: Tag) -> Tag:
        """The tag with what rank 0 finds in the run directory: its number, and a name never used before."""
        found = tag
        with writing_together(self._aside(tag), self._ranks):
            if self._ranks.rank == 0:
                found = next_tag(tag, self._run_dir)
        told = self._ranks.gather_texts(json.dumps([found.take, found.number]))[0]
        take, number = json.loads(told)
        named = replace(tag, take=take, number=number)
        assert NAME_PATTERN.fullmatch(named.name), named.name
        return named

    def _aside(self, tag: Tag) -> Path:
        """Where a state is written before it has its name."""
        return tag.folder(self._run_dir).with_name(tag.name + UNFINISHED)

    def _write(self, engine: Any, tag: Tag, aside: Path) -> None:
        """Write this rank's files of the state, without waiting for the disk."""
        with writing_together(aside, self._ranks):
            if self._ranks.rank == 0:
                if aside.exists():
                    shutil.rmtree(aside)
                aside.mkdir(parents=True)
        with writing_together(aside, self._ranks):
            write_shards(engine, aside)
            if self._ranks.rank == 0:
                write_tensors(aside / WEIGHTS_FILE, module_weights(engine))
                write_state(tag, self._run_dir, aside)

    def _publish(self, tag: Tag, manifest: Manifest, records: dict[str, FileRecord], aside: Path) -> None:
        """Give a written state its name, on rank 0; then, in vain at worst, what is not needed for it."""
        whole = manifest.model_copy(update={"files": records})
        ShardedState(aside, whole)  # refuses to lack a rank's shard
        write_manifest(whole, aside)
        note_name(tag, self._run_dir)
        aside.rename(tag.folder(self._run_dir))
        sync(aside.parent)
        try:
            point_to(tag, self._run_dir)
            self._committed(tag)
            prune(self._run_dir, self._policy)
        except OSError as error:
            warnings.warn(f"{tag.name} is saved, but what comes after that failed: {error}", stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abandon()


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


def _own_files(folder: Path, rank: int) -> Iterable[Path]:
    """The files that this rank wrote: its shard, and on rank 0 what there is besides."""
    for path in sorted(folder.iterdir()):
        shard = SHARD_NAME.fullmatch(path.name)
        if (int(shard[1]) if shard else 0) == rank and not path.match(HASHES):
            yield path
