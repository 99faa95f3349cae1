"""One training step, whole: what every rank does between two optimizer updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.model.dropout import sample_seed
from aqtopo.training import distributed
from aqtopo.training.engine import set_lrs
from aqtopo.training.loss import squared_error
from aqtopo.training.stopping import Stop

DESCRIBED = 4
"""Batches a rank, and ranks, that a message about a non-finite value describes."""


class NonFiniteLossError(FloatingPointError):
    """A loss or its gradient is NaN or infinite; the weights have not been updated with it."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the log, equal on all ranks.

    Attributes:
        loss: mean squared error over the step's valid pixels, normalised units.
        grad_norm: norm of the whole gradient before clipping; None where it overflowed in fp16, whose loss
            scaler then skips the update.
        samples: samples of weight 1.
        filled: NaN inputs that were replaced by their channel's mean.
        stop: what the ranks have agreed on, if any of them was asked to stop.
        save_failed: whether any rank knows that the last saved state will not be committed.
    """

    loss: float
    grad_norm: float | None
    samples: int
    filled: int
    stop: Stop
    save_failed: bool


def train_step(
    engine: Any,
    micro_batches: Sequence[Batch],
    config: RunConfig,
    epoch: int,
    step: int,
    lrs: dict[str, float],
    stop: Stop,
    save_failed: bool,
) -> StepResult:
    """Accumulate the gradient of the step's samples and update the weights once.

    Args:
        engine: the DeepSpeed engine.
        micro_batches: this rank's share; every rank has the same number.
        config: the run.
        epoch: the epoch, for the dropout masks.
        step: number of this update, from 1, for messages.
        lrs: rate by group for this update.
        stop: what this rank was asked to do after this step.
        save_failed: whether this rank knows that the last saved state will not be committed.

    Raises:
        NonFiniteLossError: on all ranks, before the update.
    """
    set_lrs(engine, lrs)
    device = engine.device
    asked = [stop is Stop.RESTART, stop is Stop.END, save_failed]
    facts = [[int(b.valid.sum()), b.samples, b.filled, *asked] for b in micro_batches]
    sums = distributed.total(torch.tensor(facts, device=device).sum(0)).tolist()
    pixels, samples, filled, restarts, ends, failures = sums
    if not pixels:
        raise ValueError(
            f"step {step} of epoch {epoch} has no valid target: all are missing or masked. Look at the times "
            f"{', '.join(str(time) for batch in micro_batches for time in batch.times)} in the store."
        )
    errors: list[Tensor] = []
    for index, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        error = _forward(engine, batch.to(device), config, epoch)
        engine.backward(error * (engine.world_size / pixels), scale_wrt_gas=False)
        errors.append(error.detach())
        if index < len(micro_batches) - 1:
            engine.step()
    loss = float(distributed.total(torch.stack(errors).sum())) / pixels
    if not np.isfinite(loss):
        suspects = [not torch.isfinite(error) for error in errors]
        raise NonFiniteLossError(_describe("loss", loss, step, epoch, suspects, micro_batches, config))
    engine.step()
    # DeepSpeed leaves the weights alone where a gradient is not finite; only fp16's loss scaler expects that.
    applied, norm = engine.was_step_applied(), float(engine.get_global_grad_norm())
    if not applied and config.deepspeed.precision != "fp16":
        suspects = [True] * len(micro_batches)
        raise NonFiniteLossError(_describe("gradient", norm, step, epoch, suspects, micro_batches, config))
    agreed = Stop.END if ends else Stop.RESTART if restarts else Stop.NO
    return StepResult(loss, norm if applied else None, samples, filled, agreed, failures > 0)


def _forward(engine: Any, batch: Batch, config: RunConfig, epoch: int) -> Tensor:
    """Sum of squared errors of one micro-batch; dropout masks depend on each sample's place in the epoch."""
    seeds = [sample_seed(config.training.seed, epoch, place) for place in batch.places]
    prediction = engine(batch.inputs, batch.wind, batch.lead_hours, seeds)
    return squared_error(prediction, batch.targets, batch.valid)


def _describe(
    what: str,
    value: float,
    step: int,
    epoch: int,
    suspects: Sequence[bool],
    micro_batches: Sequence[Batch],
    config: RunConfig,
) -> str:
    """Name the step and, from whichever ranks saw it first hand, some of the samples and their ranges."""
    own = [
        _describe_batch(batch, config)
        for suspect, batch in zip(suspects, micro_batches, strict=True)
        if suspect and batch.samples
    ]
    everyones = [text for text in distributed.gather_texts("; ".join(own[:DESCRIBED])) if text]
    more = f" (and on {len(everyones) - DESCRIBED} more ranks)" if len(everyones) > DESCRIBED else ""
    return (
        f"the training {what} is {value} at step {step}, epoch {epoch}; the weights were not updated. "
        f"Batches in question: {' | '.join(everyones[:DESCRIBED])}{more}. Look at these times in the store, "
        "lower optimizer.base_lr, lengthen schedule.warmup_steps or set deepspeed.gradient_clipping."
    )


def _describe_batch(batch: Batch, config: RunConfig) -> str:
    times = ", ".join(str(time) for time in batch.times)
    ranges = ", ".join(
        f"{name} {values.min():.3g}..{values.max():.3g}"
        for name, values in zip(config.data.variables, batch.inputs.transpose(0, 1), strict=True)
    )
    return f"times {times}; normalised ranges {ranges}"
