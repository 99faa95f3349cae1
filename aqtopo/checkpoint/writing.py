"""Writing together: where one rank cannot, all come to the end of it and fail with one message."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from aqtopo.checkpoint.pickles import writing_data
from aqtopo.checkpoint.ranks import Ranks
from aqtopo.checkpoint.tags import UNFINISHED

SHOWN = 4
"""Ranks that a message quotes."""


def fail_together(aside: Path, error: BaseException | None, ranks: Ranks) -> None:
    """Come to one verdict about a state that is being written; a failed one leaves nothing behind.

    Args:
        aside: its folder, still under a name that nobody takes for a saved state.
        error: why this rank cannot write it; None if it can.
        ranks: all that write.

    Raises:
        OSError: on all ranks: some rank cannot.
    """
    texts = ranks.gather_texts("" if error is None else str(error) or type(error).__name__)
    problems = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    if not problems:
        return
    if ranks.rank == 0:
        assert aside.name.endswith(UNFINISHED), aside
        shutil.rmtree(aside, ignore_errors=True)  # gives a full disk its room back
    more = f"; and {len(problems) - SHOWN} more ranks" if len(problems) > SHOWN else ""
    raise OSError(
        f"{aside.stem} could not be saved: {'; '.join(problems[:SHOWN])}{more}. The states before it are "
        "untouched; once that is put right, the same command goes on from the last of them."
    ) from error


@contextmanager
def writing_together(aside: Path, ranks: Ranks) -> Iterator[None]:
    """Have all ranks fail if one cannot write what is written inside, where no collective may be skipped.

    Raises:
        OSError: on all ranks: some rank could not.
    """
    failure = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        failure = error
    fail_together(aside, failure, ranks)


def write_shards(engine: Any, aside: Path) -> None:
    """Let DeepSpeed write this rank's shard, and on rank 0 the counters, without waiting for the disk.

    DeepSpeed's ranks wait for each other between and after their files, so that an error is kept until then.

    Args:
        engine: the DeepSpeed engine, at an accumulation boundary.
        aside: the folder, which exists.

    Raises:
        OSError: after the last collective: a file could not be written.
    """
    # The weights go into a file without pickle, once; DeepSpeed would add them to its own.
    extras: dict[str, Any] = {"module": {}, "universal_checkpoint_info": {}}
    with writing_data(), _errors_kept(engine) as errors:
        engine.save_checkpoint(str(aside.parent), tag=aside.name, client_state=extras, save_latest=False)
    if errors:
        raise OSError("; ".join(errors))


@contextmanager
def _errors_kept(engine: Any) -> Iterator[list[str]]:
    """Keep what DeepSpeed's writer raises, and keep DeepSpeed from copying its recovery scripts.

    These load whatever code a checkpoint holds, and rank 0 alone copies them.
    """
    writer, errors = engine.checkpoint_engine, list[str]()
    save = writer.save

    def attempt(state_dict: Any, path: str) -> None:
        try:
            save(state_dict, path)
        except (OSError, RuntimeError) as error:
            errors.append(f"{Path(path).name}: {_reason(Path(path), error)}")

    assert callable(engine._copy_recovery_script)
    writer.save, engine._copy_recovery_script = attempt, lambda _: None
    try:
        yield errors
    finally:
        del writer.save, engine._copy_recovery_script


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be written; PyTorch's own writer says no more than `iostream error`."""
    if isinstance(error, OSError):
        return str(error)
    try:
        with path.open("ab") as file:
            file.write(bytes(2**20))
            os.fsync(file.fileno())
    except OSError as told:
        return str(told)
    return (str(error).splitlines() or [type(error).__name__])[0]
