"""Learning rate of each group as a pure function of the step.

    warm-up, s < S:   lr = m base (s + 1) / S
    cosine:           lr = eta_min + (m base - eta_min) (1 + cos(pi t / T)) / 2

with m the group's multiplier, S the warm-up steps and, by `schedule.interval`, t = s - S and T = total - S in
steps, or t and T in epochs. There is no state, so a resumed run continues with the same rates.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

from aqtopo.config import RunConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up and cosine decay.

    Attributes:
        peak_lrs: peak learning rate by group name.
        eta_min: final learning rate of all groups.
        warmup_steps: steps of linear warm-up.
        epochs: length of the run [epochs].
        steps_per_epoch: steps per epoch.
        interval: unit in which the cosine advances.
    """

    peak_lrs: dict[str, float]
    eta_min: float
    warmup_steps: int
    epochs: int
    steps_per_epoch: int
    interval: Literal["epoch", "step"]

    @classmethod
    def from_config(cls, config: RunConfig, steps_per_epoch: int) -> Self:
        """Create the schedule of a run.

        Raises:
            ValueError: the warm-up is longer than the run.
        """
        total = config.training.epochs * steps_per_epoch
        if config.schedule.warmup_steps >= total:
            raise ValueError(
                f"schedule.warmup_steps = {config.schedule.warmup_steps}: the run has only {total} steps "
                f"({config.training.epochs} epochs of {steps_per_epoch}). Shorten the warm-up."
            )
        return cls(
            peak_lrs={
                group.name: group.lr_multiplier * config.optimizer.base_lr
                for group in config.parameter_groups
            },
            eta_min=config.schedule.eta_min,
            warmup_steps=config.schedule.warmup_steps,
            epochs=config.training.epochs,
            steps_per_epoch=steps_per_epoch,
            interval=config.schedule.interval,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def lr(self, group: str, step: int) -> float:
        """Return the learning rate of a group at a step, counted from 0."""
        peak = self.peak_lrs[group]
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        return self.eta_min + (peak - self.eta_min) * (1 + math.cos(math.pi * self._progress(step))) / 2

    def lrs(self, step: int) -> dict[str, float]:
        """Return the learning rate of each group at a step, counted from 0."""
        return {group: self.lr(group, step) for group in self.peak_lrs}

    def _progress(self, step: int) -> float:
        """Return t / T, which is 0 at the end of the warm-up."""
        if self.interval == "epoch":
            return (step // self.steps_per_epoch) / self.epochs
        return (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
