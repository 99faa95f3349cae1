from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig, load_config
from aqtopo.data.samples import SampleTable, StepPlan
from aqtopo.planning.calendar import Calendar, make_calendar

TinyConfig = Callable[..., RunConfig]


def calendar(micro_steps: int, accumulation: int, every: int) -> Calendar:
    table = SampleTable(np.empty(0, "datetime64[h]"), (12,), True)
    steps = StepPlan(micro_steps, micro_batch=1, accumulation=accumulation, world=1)
    return Calendar(False, {"train": table}, steps, epochs=5, validate_every=every)


def test_the_reference_run_has_87_steps_of_1600_samples() -> None:
    made = make_calendar(load_config("ds_configs/resume_reference.json"))
    assert not made.from_store
    assert len(made.tables["train"].times) == 34_680
    assert len(made.tables["train"]) == 138_720
    assert made.steps.train_batch == 1600
    assert made.steps.micro_steps_per_epoch == 173
    assert made.steps.steps_per_epoch == 87
    assert made.total_steps == 870


def test_a_hundred_micro_steps_into_epoch_3_are_311_steps() -> None:
    made = make_calendar(load_config("ds_configs/resume_reference.json"))
    assert made.step_of(3, 100) == 311
    assert made.validations(3) == {100: 311}


def test_the_last_step_of_an_epoch_may_be_short_and_carries_nothing_over() -> None:
    made = calendar(micro_steps=5, accumulation=2, every=5)
    assert [made.step_of(epoch, 5) for epoch in range(3)] == [3, 6, 9]
    assert made.validations(1) == {5: 6}


@given(
    micro_steps=st.integers(1, 60),
    accumulation=st.integers(1, 7),
    every=st.integers(1, 60),
    epoch=st.integers(0, 4),
)
def test_validations_come_where_training_makes_them(
    micro_steps: int, accumulation: int, every: int, epoch: int
) -> None:
    made = calendar(micro_steps, accumulation, every)
    due = []
    for step in range(1, made.steps.steps_per_epoch + 1):
        done, before = min(step * accumulation, micro_steps), (step - 1) * accumulation
        if done // every > before // every:  # the rule of the training loop
            due.append(epoch * made.steps.steps_per_epoch + step)
    assert list(made.validations(epoch).values()) == due


def test_an_existing_store_is_counted_instead(tiny_config: TinyConfig) -> None:
    made = make_calendar(tiny_config())
    assert made.from_store
    assert len(made.tables["train"].times) == 24
    assert len(made.tables["test"].times) == 6


def test_a_store_that_cannot_be_read_is_refused(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "broken.zarr").mkdir()
    with pytest.raises(ValueError, match=r"broken\.zarr"):
        make_calendar(tiny_config(data={"store": str(tmp_path / "broken.zarr")}))
