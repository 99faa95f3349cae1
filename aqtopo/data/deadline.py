"""A deadline for what reads a file system: that may hang for ever, and a call into the kernel has none."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from aqtopo.config import READ_DEADLINE_S

Result = TypeVar("Result")


def within(deadline_s: float, work: Callable[[], Result]) -> Result:
    """Do something that may never end, in a thread that is left behind if it does not.

    Raises:
        TimeoutError: it took longer than `deadline_s`.
    """
    results: queue.Queue[tuple[Result | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:  # noqa: BLE001  (raised again by who waits)
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=deadline_s)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast(Result, result)


def answered(
    store: object, what: str, work: Callable[[], Result], deadline_s: float = READ_DEADLINE_S
) -> Result:
    """What `work` reads of a store.

    Args:
        store: its path.
        what: what is read, for the message.
        work: reads it.
        deadline_s: how long it may take [s].

    Raises:
        TimeoutError: it took longer; names the store and `what`.
    """
    try:
        return within(deadline_s, work)
    except TimeoutError:
        raise TimeoutError(
            f"The data store {store} did not answer for {deadline_s:g} s: {what} is still not read. See "
            "whether the file system hangs; if it is only slow, raise `data.read_deadline_s` of the run, "
            "or give `aqtopo data` a longer `--deadline`."
        ) from None
