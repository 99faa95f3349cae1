"""What a run will do and when: samples, steps, validations.

Counted in the store, or without one in a complete hourly calendar of the configured years.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from aqtopo.config import RunConfig
from aqtopo.data.samples import SampleTable, StepPlan, calendar_times, sample_table
from aqtopo.data.schema import Hours


@dataclass(frozen=True)
class Calendar:
    """The course of a run at its configured world size.

    Attributes:
        from_store: whether the hours were counted in the store; otherwise every hour of the years is assumed.
        tables: the samples of `train`, `validation` and `test`.
        steps: how an epoch's samples fall into steps.
        epochs: length of the run.
        validate_every: micro-steps between validations.
    """

    from_store: bool
    tables: dict[str, SampleTable]
    steps: StepPlan
    epochs: int
    validate_every: int

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.epochs * self.steps.steps_per_epoch

    def step_of(self, epoch: int, micro_step: int) -> int:
        """Updates made in all when `micro_step` micro-steps of `epoch` are done, a begun step completed."""
        assert 0 <= micro_step <= self.steps.micro_steps_per_epoch
        return epoch * self.steps.steps_per_epoch + math.ceil(micro_step / self.steps.accumulation)

    def validations(self, epoch: int) -> dict[int, int]:
        """The validations of an epoch: after how many micro-steps, and the step at which each comes."""
        before = epoch * self.steps.steps_per_epoch
        due = self.steps.validation_steps(self.validate_every)
        return {micro_step: before + step for step, micro_step in due.items()}


def make_calendar(config: RunConfig) -> Calendar:
    """Count samples and steps of a run; the store is optional.

    Raises:
        ValueError: the store is there but cannot be used, a split has no usable time, or an epoch is shorter
            than one micro-step.
    """
    from_store = Path(config.data.store).exists()
    times = _stored_hours(config) if from_store else _every_hour(config)
    tables = {split: sample_table(config, times, split) for split in ("train", "validation", "test")}
    return Calendar(
        from_store,
        tables,
        StepPlan.from_config(config, len(tables["train"])),
        config.training.epochs,
        config.training.validate_every,
    )


def _stored_hours(config: RunConfig) -> Hours:
    from aqtopo.data.store import open_store  # loads pandas, xarray and zarr

    return open_store(config.data.store).times


def _every_hour(config: RunConfig) -> Hours:
    data = config.data
    return calendar_times((*data.train_years, *data.validation_years, *data.test_years))
