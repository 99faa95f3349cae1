"""The training loss over the last steps, and whether it goes on after a resume where it was."""

from collections import deque
from dataclasses import dataclass, field

STEPS = 20
"""Steps that the running loss is the mean of."""

JUMP = 1.25
"""A running loss after resuming that is this many times the saved one is reported."""


@dataclass(frozen=True)
class Comparison:
    """The running loss after a resume beside the saved one."""

    running: float
    saved: float

    @property
    def jump(self) -> bool:
        """Whether the loss is higher than chance explains."""
        return self.running > JUMP * self.saved

    def __str__(self) -> str:
        verdict = "WARNING: it has jumped" if self.jump else "as expected"
        return (
            f"train loss over {STEPS} steps after resuming {self.running:.4f}, "
            f"saved {self.saved:.4f}: {verdict}"
        )


@dataclass
class RunningLoss:
    """Mean loss of the last steps.

    Attributes:
        expected: what a saved state says it should be; None where nothing was resumed.
        losses: of the last steps.
    """

    expected: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))

    def add(self, loss: float) -> Comparison | None:
        """Note a step's loss; after a resume, once there are enough of them, how they compare."""
        self.losses.append(loss)
        if self.expected is None or len(self.losses) < STEPS:
            return None
        expected, self.expected = self.expected, None
        return Comparison(sum(self.losses) / len(self.losses), expected)

    @property
    def mean(self) -> float | None:
        """Mean of the last steps' losses, or None before the first."""
        return sum(self.losses) / len(self.losses) if self.losses else None
