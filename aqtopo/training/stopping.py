"""When to stop: a request that all ranks agree on, or a validation loss that no longer falls."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType

import torch

from aqtopo.run_directory.run_state import RESTART_REASON
from aqtopo.training import distributed


class Stop(IntEnum):
    """What a run is asked to do after its step; the larger wins where ranks were asked different things."""

    NO = 0
    RESTART = 1
    """Save and end, to be started again: the time limit is near."""
    END = 2
    """Save and end for good."""

    @property
    def reason(self) -> str:
        """What the log says of it."""
        return RESTART_REASON if self is Stop.RESTART else "asked to stop by a signal"


class StopRequests:
    """Remembers signals instead of dying of them, so that ranks can finish the same step.

    SIGUSR1, Slurm's warning before the time limit, asks for a restart; SIGINT and SIGTERM, which is what
    `scancel` sends, for the end. The ranks agree on `wanted` in the reduction that every step does anyway.

    Args:
        file_raised: whether a file asks for a restart. It stands for SIGUSR1 under launchers that die of that
            signal; a rank that need not look passes nothing.
    """

    MEANINGS = {  # noqa: RUF012 - never written
        signal.SIGUSR1: Stop.RESTART,
        signal.SIGINT: Stop.END,
        signal.SIGTERM: Stop.END,
    }

    def __init__(self, file_raised: Callable[[], bool] = lambda: False) -> None:
        self._file_raised = file_raised
        self._received = Stop.NO

    @property
    def wanted(self) -> Stop:
        """What this rank was asked to do."""
        return max(self._received, Stop.RESTART if self._file_raised() else Stop.NO)

    def agreed(self, device: torch.device) -> Stop:
        """What any rank was asked to do by now; all of them must ask."""
        return Stop(distributed.largest(int(self.wanted), device))

    @contextmanager
    def watching(self, *numbers: signal.Signals) -> Iterator[None]:
        """Remember these signals while active."""
        previous = {number: signal.signal(number, self._remember) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._received = max(self._received, self.MEANINGS[signal.Signals(number)])


@dataclass
class EarlyStopping:
    """Counts validations without a new best.

    Attributes:
        patience: validations without a new best after which the run stops; None never stops.
        best: lowest validation loss so far.
        waited: validations since then.
    """

    patience: int | None
    best: float = float("inf")
    waited: int = 0

    def update(self, val_loss: float) -> bool:
        """Note a validation; whether it is the best so far."""
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
            return True
        self.waited += 1
        return False

    @property
    def best_so_far(self) -> float | None:
        """The lowest validation loss; None before the first."""
        return self.best if self.best < float("inf") else None

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
