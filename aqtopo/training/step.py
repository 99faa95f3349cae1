"""One training step: forward, backward and update over all micro-steps and ranks.

The loss is the mean squared error over the step's valid pixels, for any split into ranks and micro-steps:

    L = sum over valid pixels of (prediction - target)^2 / number of valid pixels

With `training.area_weighted_loss`, each pixel counts with the cosine of its latitude in both sums.
Targets are normalised, so all pollutants have equal weight. DeepSpeed averages gradients over the W ranks and
adds those of the micro-steps, so `squared error x W / valid pixels of the step` on each rank has the gradient
of L.

On a GPU, the host queues the whole step without waiting for a result: each value is copied by `HostCopy` as
soon as it is queued, and read later. The counts, queued first, are read before the update. The loss and the
gradient norm are read after it; DeepSpeed itself waits for the norm, to skip an update whose gradient is not
finite. A loss that is not finite makes the gradient NaN on the device, so DeepSpeed skips that update too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.store import Store
from aqtopo.distributed import process_group
from aqtopo.model.dropout import sample_seed
from aqtopo.training.engine import set_lrs
from aqtopo.training.stopping import Stop

MAX_DESCRIBED = 4
"""Largest number of ranks, and of batches per rank, in a message about a non-finite value."""


class NonFiniteLossError(FloatingPointError):
    """A loss or its gradient is NaN or infinite; the weights are not updated."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step, equal on all ranks.

    Attributes:
        loss: mean squared error over the step's valid pixels, normalised units.
        grad_norm: gradient norm before clipping; None after an fp16 overflow, which skips the update.
        samples: samples without padding.
        filled: NaN inputs that were replaced by the mean of their channel.
        stop: the ranks' common stop request.
        save_failed: True if the last saved state cannot be committed on some rank.
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
    row_weights: Tensor | None,
    epoch: int,
    step: int,
    lrs: dict[str, float],
    stop: Stop,
    save_failed: bool,
) -> StepResult:
    """Accumulate the gradients of all micro-batches and update the weights.

    All ranks have equally many micro-batches. `row_weights` are those of `loss_weights`. The epoch selects
    the dropout masks; `step` counts from 1. `stop` is this rank's stop request, and `save_failed` is True if
    this rank cannot commit the last state.

    Raises:
        NonFiniteLossError: on all ranks; the weights are not updated.
        ValueError: the step has no valid target.
    """
    set_lrs(engine, lrs)
    requests = [stop is Stop.RESTART, stop is Stop.END, save_failed]
    counts = [
        [float(pixel_weight(b.valid, row_weights)), b.samples, b.filled, *requests] for b in micro_batches
    ]
    sums = process_group.total(_to_device(torch.tensor(counts, dtype=torch.float64).sum(0), engine.device))
    facts = HostCopy(sums)
    weights = None if row_weights is None else _to_device(row_weights, engine.device)
    scale = (engine.world_size / sums[0]).float()
    errors: list[Tensor] = []
    for index, batch in enumerate(on_device(micro_batches, engine.device)):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        error = _forward(engine, batch, config, weights, epoch)
        # 0 x infinity is NaN: DeepSpeed then skips the update, even if only the loss overflows.
        engine.backward(error * (scale + 0 * error.detach()), scale_wrt_gas=False)
        errors.append(error.detach())
        if index < len(micro_batches) - 1:
            engine.step()
    # In float64, a sum of finite errors is finite.
    error_sum = HostCopy(process_group.total(torch.stack(errors).double().sum()))
    pixels, samples, filled, restarts, ends, failures = facts.read()
    if not pixels:
        raise ValueError(_describe_missing_targets(step, epoch, micro_batches))
    norm = _update(engine)
    loss = error_sum.read() / pixels
    if not np.isfinite(loss):
        suspects = [not torch.isfinite(error) for error in errors]
        raise NonFiniteLossError(_describe("loss", loss, step, epoch, suspects, micro_batches, config))
    if norm is None and config.deepspeed.precision != "fp16":  # only fp16's loss scaler expects that
        norm, suspects = float(engine.get_global_grad_norm()), [True] * len(micro_batches)
        raise NonFiniteLossError(_describe("gradient", norm, step, epoch, suspects, micro_batches, config))
    agreed = Stop.END if ends else Stop.RESTART if restarts else Stop.NO
    return StepResult(loss, norm, int(samples), int(filled), agreed, failures > 0)


def _describe_missing_targets(step: int, epoch: int, micro_batches: Sequence[Batch]) -> str:
    times = ", ".join(str(time) for batch in micro_batches for time in batch.times)
    return (
        f"step {step} of epoch {epoch} has no valid target: all are missing or masked. Check the times "
        f"{times} in the store."
    )


class HostCopy:
    """Copy of a device tensor in host memory, made without waiting; `read` waits until it is complete."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._complete = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        if self._complete is not None:
            self._complete.record()

    def read(self) -> Any:
        """Return the number or the list of numbers."""
        if self._complete is not None:
            self._complete.synchronize()
        return self._values.tolist()


def on_device(micro_batches: Sequence[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the micro-batches on a device; a GPU copies the next one during the computations of each."""
    if device.type != "cuda":
        yield from micro_batches
        return
    computing = torch.cuda.current_stream(device)
    copying = _copy_stream(device)

    def copy(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            return batch.to(device)

    copies = map(copy, micro_batches)
    ahead = next(copies, None)
    while ahead is not None:
        computing.wait_stream(copying)
        batch, ahead = ahead, next(copies, None)
        batch.record_stream(computing)
        yield batch


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all copies to a GPU. PyTorch keeps freed memory per stream, and has 32 streams."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _update(engine: Any) -> float | None:
    """Update the weights; return the gradient norm before clipping, or None if DeepSpeed skipped the update.

    The copy of the norm is queued before the update, so that reading it does not wait for the update.
    """
    norms: list[HostCopy] = []
    zero = engine.optimizer
    with zero.optimizer.register_step_pre_hook(lambda *_: norms.append(HostCopy(zero._global_grad_norm))):
        engine.step()
    assert bool(norms) == engine.was_step_applied()
    return float(norms[0].read()) if norms else None


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a small tensor on a device, copied without waiting for the device."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def loss_weights(config: RunConfig, store: Store) -> Tensor | None:
    """Return the weights (H, 1) of the grid's rows in the loss, in fp32 on the host; None if all are 1."""
    if not config.training.area_weighted_loss:
        return None
    return torch.from_numpy(np.cos(np.deg2rad(store.lat))[:, None].astype(np.float32))


def pixel_weight(valid: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Return the summed weight of the valid pixels (B, K, C, H, W); their number without row weights."""
    if row_weights is None:
        return valid.sum()
    return (valid.sum((0, 1, 2, 4))[:, None] * row_weights.to(valid.device, torch.float64)).sum()


def squared_error(
    prediction: Tensor, target: Tensor, valid: Tensor, row_weights: Tensor | None = None
) -> Tensor:
    """Return the weighted sum of squared errors over valid pixels.

    Args:
        prediction: (B, K, C, H, W), normalised, any float dtype.
        target: (B, K, C, H, W), normalised; any value where it is not valid.
        valid: (B, K, C, H, W), bool.
        row_weights: (H, 1); None for equal weights.

    Returns:
        A scalar in fp32 (fp64 for fp64 predictions).
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    # Masked before the square: NaN x 0 is NaN, in the gradient too.
    error = torch.where(valid, prediction.to(dtype) - target.to(dtype), 0)
    squares = error.square()
    return (squares if row_weights is None else squares * row_weights).sum()


def _forward(engine: Any, batch: Batch, config: RunConfig, row_weights: Tensor | None, epoch: int) -> Tensor:
    """Return the squared error of a micro-batch; a sample's place in the epoch seeds its dropout."""
    seeds = [sample_seed(config.training.seed, epoch, place) for place in batch.places]
    prediction = engine(batch.inputs, batch.wind, batch.lead_hours, seeds, batch.weather)
    return squared_error(prediction, batch.targets, batch.valid, row_weights)


def _describe(
    what: str,
    value: float,
    step: int,
    epoch: int,
    suspects: Sequence[bool],
    micro_batches: Sequence[Batch],
    config: RunConfig,
) -> str:
    """Describe a non-finite value: the step and some of the samples of the ranks that have it."""
    own = [
        _describe_batch(batch, config)
        for suspect, batch in zip(suspects, micro_batches, strict=True)
        if suspect and batch.samples
    ]
    texts = [text for text in process_group.gather_texts("; ".join(own[:MAX_DESCRIBED])) if text]
    more = f" (and on {len(texts) - MAX_DESCRIBED} more ranks)" if len(texts) > MAX_DESCRIBED else ""
    return (
        f"the training {what} is {value} at step {step}, epoch {epoch}; the weights were not updated. "
        f"Affected batches: {' | '.join(texts[:MAX_DESCRIBED])}{more}. Check these times in the store, "
        "lower optimizer.base_lr, lengthen schedule.warmup_steps or set deepspeed.gradient_clipping."
    )


def _describe_batch(batch: Batch, config: RunConfig) -> str:
    times = ", ".join(str(time) for time in batch.times)
    fields = torch.cat([batch.inputs, batch.weather.flatten(1, 2)], 1)
    ranges = ", ".join(
        f"{name} {values.min():.3g}..{values.max():.3g}"
        for name, values in zip(config.inputs, fields.transpose(0, 1), strict=True)
    )
    return f"times {times}; normalised ranges {ranges}"
