"""Makes days by several processes, which end with the command that started them, however it ends."""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import numpy as np

from aqtopo.data.prepare.day import DayMaker
from aqtopo.data.walk import Report

_maker: DayMaker | None = None
"""Set in the processes of the pool, which get it once instead of with every day."""


def make_days(maker: DayMaker, days: Sequence[np.datetime64], workers: int, report: Report) -> None:
    """Make every day of which there are files and which is not finished.

    Raises:
        ValueError: a process was killed; what is finished stays so.
    """
    for leftover in maker.parts.glob("*.tmp"):
        leftover.unlink()
    to_do = [day for day in days if maker.is_to_do(day)]
    report("days regridded", len(days) - len(to_do), len(days))
    if not to_do:
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(min(workers, len(to_do)), context, _begin, (maker,)) as pool:
        futures = [pool.submit(_make, day) for day in to_do]
        try:
            for done, future in enumerate(as_completed(futures), start=len(days) - len(to_do) + 1):
                future.result()
                report("days regridded", done, len(days))
        except BrokenProcessPool as error:
            raise ValueError(
                "A process that regrids days was killed, most often because the machine ran out of memory. "
                "Start the command again with fewer --workers: it goes on where it was."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(maker: DayMaker) -> None:
    global _maker
    _maker = maker
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A killed command must not leave processes behind that write beside its successor.
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(command: int) -> None:
    wait([command])
    os._exit(1)


def _make(day: np.datetime64) -> None:
    assert _maker is not None
    _maker.make(day)
