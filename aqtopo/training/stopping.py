"""When to stop: a signal that all ranks agree on, or a validation loss that no longer falls."""

import signal
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self


class StopSignals:
    """Remembers SIGINT and SIGTERM instead of dying of them, so that ranks can finish the same step.

    Use as a context manager. The ranks agree on `requested` in the reduction that every step does anyway.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.received is not None

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


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
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
