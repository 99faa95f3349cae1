"""Position of a Lightning checkpoint, from the counters of its loops.

`global_step` alone does not give the position: with `drop_last=False`, PyTorch's default, an epoch has a last
incomplete micro-batch, which aqtopo drops, and may have one step more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqtopo.checkpoint.manifest import Position
from aqtopo.data.samples import StepPlan
from aqtopo.refusal import raise_problems

REMEDY = "Use the data, batch, accumulation and number of ranks of the run that saved it."


@dataclass(frozen=True)
class _Counters:
    epoch: int
    steps: int
    steps_in_epoch: int
    micro_steps_in_epoch: int
    epoch_ended: bool


def loop_position(path: Path, content: Mapping[str, Any], plan: StepPlan) -> Position:
    """Return the position at which a file was saved, counted in the run's own steps.

    Args:
        path: the file, for messages.
        content: its content.
        plan: steps of the run that continues it.

    Raises:
        RefusedError: the file has no counters, or its epochs have other steps than the run's.
    """
    counters = _counters(path, content)
    raise_problems(f"{path}: its position does not exist in this run", _problems(counters, plan), REMEDY)
    last = plan.steps_per_epoch
    done = last if counters.epoch_ended else min(counters.steps_in_epoch, last)
    step = counters.epoch * last + done
    return Position(epoch=counters.epoch, step_in_epoch=done, step=step, next_samples=None)


def _counters(path: Path, content: Mapping[str, Any]) -> _Counters:
    """Read the counters as Lightning 1.6 and later write them."""
    try:
        loop = content["loops"]["fit_loop"]
        optimizer = next(part for name, part in loop.items() if name.endswith(".optim_progress"))["optimizer"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]["current"]
        found = _Counters(
            epoch=int(content["epoch"]),
            steps=int(content["global_step"]),
            steps_in_epoch=int(optimizer["step"]["current"]["completed"]),
            micro_steps_in_epoch=int(batches["current"]["processed"]),
            epoch_ended=bool(batches["is_last_batch"]),
        )
        counted, between = (
            int(optimizer["step"]["total"]["completed"]),
            epochs["completed"] == epochs["ready"],
        )
    except (KeyError, TypeError, StopIteration):
        counted, found, between = None, None, False
    if found is None or counted != found.steps:
        raise_problems(
            f"{path}: its position is unknown",
            ["it lacks the loop counters that Lightning writes with automatic optimization (loops.fit_loop)"],
            "Save with Trainer.save_checkpoint or ModelCheckpoint, without manual optimization.",
        )
    assert found is not None
    # After the end of an epoch, its counters stay until the next begins.
    return _Counters(found.epoch, found.steps, 0, 0, False) if between else found


def _problems(counters: _Counters, plan: StepPlan) -> list[str]:
    """Compare the steps of the file's epochs with the run's, also with an incomplete last micro-batch."""
    own = plan.steps_per_epoch
    with_incomplete = math.ceil(plan.all_micro_steps_per_epoch / plan.accumulation)
    known = f"{own}" if own == with_incomplete else f"{own} ({with_incomplete} with drop_last=False)"
    before = counters.steps - counters.steps_in_epoch
    problems = []
    if before not in (counters.epoch * own, counters.epoch * with_incomplete):
        problems.append(
            f"{before} steps in {counters.epoch} epochs before, but this run has {known} steps per epoch"
        )
    if counters.epoch_ended and counters.steps_in_epoch not in (own, with_incomplete):
        problems.append(
            f"{counters.steps_in_epoch} steps in a whole epoch, but this run has {known} steps per epoch"
        )
    expected = counters.micro_steps_in_epoch // plan.accumulation
    if not counters.epoch_ended and counters.steps_in_epoch != expected:
        problems.append(
            f"{counters.steps_in_epoch} steps after {counters.micro_steps_in_epoch} micro-steps of the "
            f"epoch, but this run accumulates {plan.accumulation} micro-steps"
        )
    if not counters.epoch_ended and counters.steps_in_epoch > with_incomplete:
        problems.append(
            f"{counters.steps_in_epoch} steps in epoch {counters.epoch}, but this run has {known} steps per "
            "epoch"
        )
    return problems
