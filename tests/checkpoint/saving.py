"""Work of a test's ranks: save a toy model in all kinds of trouble."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from jobs import aqtopo, start, toy_engine, toy_facts, toy_steps

from aqtopo.checkpoint import save
from aqtopo.checkpoint.save import Saver
from aqtopo.checkpoint.tags import Tag
from aqtopo.config import CheckpointConfig
from aqtopo.distributed.process_group import TorchRanks
from aqtopo.training.stopping import Stop, StopRequests


def aqtopo_that_cannot_commit(arguments: list[str]) -> None:
    """The command line, on ranks of which the second finds its disk broken when it syncs."""

    def broken(path: Path, threads: int) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    if os.environ["RANK"] == "1":
        save.sync_and_hash = broken  # type: ignore[attr-defined]
    aqtopo(arguments)


def save_in_trouble(folder: str, troubles: list[str], out: str) -> None:
    """Save at step 5, then once in each trouble; write down what this rank was told."""
    ranks = start()
    engine = toy_engine(ranks.size)
    losses = toy_steps(engine, 0, 5, ranks.rank, ranks.size)
    saver, told = Saver(Path(folder), CheckpointConfig(), ranks), {}
    saver.save(engine, Tag(0, 5, 5, None, losses[-1]), toy_facts(5))
    saver.finish()
    for step, trouble in enumerate(troubles, start=6):
        with TROUBLES[trouble](Path(folder), ranks):
            try:
                saver.save(engine, Tag(0, step, step, None, 1.0), toy_facts(step))
                saver.finish()
            except OSError as error:
                told[trouble] = str(error)
            ranks.barrier()
    saver.save(engine, Tag(0, 20, 20, None, 1.0), toy_facts(5))
    saver.finish()
    Path(out, f"told{ranks.rank}.json").write_text(json.dumps(told), encoding="utf-8")


@contextmanager
def full_disk(folder: Path, ranks: TorchRanks) -> Iterator[None]:
    """Leave only 12 KiB of the file system."""
    filler = folder / "filler"
    if ranks.rank == 0:
        filler.write_bytes(bytes(shutil.disk_usage(folder).free - 12_288))
    ranks.barrier()
    yield
    if ranks.rank == 0:
        filler.unlink()
    ranks.barrier()


@contextmanager
def read_only_disk(folder: Path, ranks: TorchRanks) -> Iterator[None]:
    """As a file system is after an error of its disk."""
    if ranks.rank == 0:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    ranks.barrier()
    yield
    if ranks.rank == 0:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    ranks.barrier()


@contextmanager
def limited_rank(_: Path, ranks: TorchRanks) -> Iterator[None]:
    """Let rank 1 write no file of more than 4 KiB, as one that has used up its quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def lost_shard(_: Path, ranks: TorchRanks) -> Iterator[None]:
    """Rank 1 has nothing to tell of files that it wrote."""
    own = save._own_files
    if ranks.rank == 1:
        save._own_files = lambda *_: ()
    yield
    save._own_files = own


@contextmanager
def no_pointer(folder: Path, ranks: TorchRanks) -> Iterator[None]:
    """Make the update of the pointer fail, which follows the rename."""
    pointer = folder / "checkpoints" / "latest"
    if ranks.rank == 0:
        pointer.rename(folder / "latest")
        pointer.mkdir()
    yield
    if ranks.rank == 0:
        pointer.rmdir()
        (folder / "latest").rename(pointer)


TROUBLES = {
    "full": full_disk,
    "read-only": read_only_disk,
    "limited": limited_rank,
    "lost shard": lost_shard,
    "no pointer": no_pointer,
}


def kill_in_mid_commit(folder: str, rank: int) -> None:
    """Save at step 5, and have a rank killed while it hashes the state of step 7."""
    ranks = start()
    engine = toy_engine(ranks.size)
    saver = Saver(Path(folder), CheckpointConfig(), ranks)
    for step in (5, 7):
        toy_steps(engine, engine.global_steps, step - engine.global_steps, ranks.rank, ranks.size)
        if step == 7 and rank == ranks.rank:
            save.sync_and_hash = die_last  # type: ignore[attr-defined]
        saver.save(engine, Tag(0, step, step, None, 1.0), toy_facts(step))
        saver.finish()


def die_last(path: Path, threads: int = 1) -> None:
    """End like a rank that is killed while it hashes, when the other rank has done so."""
    while not any(path.parent.glob("hashes-*.json")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def save_under_signals(folder: str) -> None:
    """Save while SIGTERM and SIGINT keep coming; say how many came."""
    ranks = start()
    engine = toy_engine(ranks.size)
    losses = toy_steps(engine, 0, 5, ranks.rank, ranks.size)
    saver, over, count = Saver(Path(folder), CheckpointConfig(), ranks), threading.Event(), [0]

    def pester() -> None:
        while not over.wait(0.002):
            for number in StopRequests.REQUESTS:
                os.kill(os.getpid(), number)
                count[0] += 1

    stops = StopRequests()
    with stops.recording(*StopRequests.REQUESTS):
        thread = threading.Thread(target=pester)
        thread.start()
        while stops.requested is Stop.NO:
            time.sleep(0.001)
        saver.save(engine, Tag(0, 5, 5, None, losses[-1]), toy_facts(5))
        saver.finish()
        over.set()
        thread.join()
    sys.stdout.write(f"signals {count[0]}\n")
