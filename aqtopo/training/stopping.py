"""Stop requests by signal or file, and early stopping by validation loss."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType

import torch

from aqtopo.distributed import process_group
from aqtopo.run_directory.run_state import RESTART_REASON


class Stop(IntEnum):
    """Request to end the run after the current step; the largest of all ranks is effective."""

    NO = 0
    RESTART = 1
    """Save and exit; the batch job starts the run again."""
    END = 2
    """Save and exit."""

    @property
    def reason(self) -> str:
        """Text for the log."""
        return RESTART_REASON if self is Stop.RESTART else "asked to stop by a signal"


class StopRequests:
    """Stop requests of one rank, from signals and from a file of the batch job.

    SIGUSR1, Slurm's warning before the time limit, requests a restart; SIGINT and SIGTERM (`scancel`) request
    the end. The all-reduce of each step combines the requests of all ranks.

    `restart_requested` returns True if the batch job's file requests a restart. It is for launchers that
    SIGUSR1 kills.
    """

    REQUESTS = {  # noqa: RUF012 - constant
        signal.SIGUSR1: Stop.RESTART,
        signal.SIGINT: Stop.END,
        signal.SIGTERM: Stop.END,
    }

    def __init__(self, restart_requested: Callable[[], bool] = lambda: False) -> None:
        self._restart_requested = restart_requested
        self._received = Stop.NO

    @property
    def requested(self) -> Stop:
        """Request to this rank."""
        return max(self._received, Stop.RESTART if self._restart_requested() else Stop.NO)

    def agreed(self, device: torch.device) -> Stop:
        """Return the request to any rank; a collective."""
        return Stop(process_group.largest(int(self.requested), device))

    @contextmanager
    def recording(self, *numbers: signal.Signals) -> Iterator[None]:
        """Record these signals instead of their default action."""
        previous = {number: signal.signal(number, self._record) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._received = max(self._received, self.REQUESTS[signal.Signals(number)])


@dataclass
class EarlyStopping:
    """Early stopping: counts validations without a new best loss.

    Attributes:
        patience: number of such validations after which the run stops; None disables it.
        best: lowest validation loss.
        waited: validations since the best.
    """

    patience: int | None
    best: float = float("inf")
    waited: int = 0

    def update(self, val_loss: float) -> bool:
        """Add a validation loss; return True if it is the lowest."""
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
            return True
        self.waited += 1
        return False

    @property
    def best_so_far(self) -> float | None:
        """Lowest validation loss; None before the first."""
        return self.best if self.best < float("inf") else None

    @property
    def exhausted(self) -> bool:
        """True if the run should stop."""
        return self.patience is not None and self.waited >= self.patience
