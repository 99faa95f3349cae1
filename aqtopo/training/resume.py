"""Resume of a saved state, verified before the first step.

The state is converted to the universal layout, the weights are loaded, the engine is built, and each ZeRO
partition is filled by name. Then weights, moments, steps, rates, probe loss and next samples are compared
with the saved ones; a difference refuses the resume on all ranks.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from aqtopo.checkpoint.changes import Allowed, config_changes, match_names
from aqtopo.checkpoint.engine_state import check_restorable
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, NextSamples, TensorInfo
from aqtopo.checkpoint.restore import (
    Verified,
    load_module,
    read_weights,
    restore_engine,
    restore_loss_scaler,
    verify_engine,
)
from aqtopo.checkpoint.universal import open_universal
from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.samples import StepPlan, epoch_order, sample_table
from aqtopo.data.store import Store
from aqtopo.distributed.process_group import RankGroup, raise_problems_on_all_ranks
from aqtopo.model import AirQualityViT
from aqtopo.run_directory.run_log import RunLog
from aqtopo.training.engine import build_engine, group_parameters, set_lrs
from aqtopo.training.prepare import Prepared
from aqtopo.training.validation import probe_loss

PROBE_SETTINGS = ("model", "data", "deepspeed.bf16", "deepspeed.fp16")
"""Settings on which the probe loss depends."""

PROBE_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 2e-3}
"""Relative tolerance of the probe loss by precision; the order of sums depends on the machine."""

AVERAGED_STEPS = 20
"""Steps over which the training loss is averaged."""

JUMP = 1.25
"""Ratio of the mean loss after a resume to the saved one above which the log warns."""


def resume(
    prepared: Prepared, model: AirQualityViT, probe: Batch, ranks: RankGroup, device: torch.device
) -> tuple[Any, Manifest, dict[str, Any]]:
    """Build an engine with the saved state and verify it; a collective.

    The configuration of `prepared` must be compatible with the state, and `model` freshly initialised.

    Returns:
        The engine, ready for the next step; the manifest of the state; and the log's resume event.

    Raises:
        RefusedError: on all ranks, before any step: files are damaged, or the restored state differs.
    """
    assert prepared.source is not None
    config, schedule, allowed = prepared.config, prepared.schedule, prepared.options.allowed
    seconds: dict[str, float] = {}
    with _timed(seconds, "convert"):
        state = open_universal(prepared.source, ranks)
    manifest = state.manifest
    with _timed(seconds, "load"):
        names = match_names(manifest, model_groups(config, model), other_tensors(model), allowed)
        weights = read_weights(state.folder, ranks)
        load_module(model, weights, names)
    with _timed(seconds, "engine"):
        engine = build_engine(config, model, ranks.size, device)
        check_restorable(engine)
    with _timed(seconds, "load"):
        restore_engine(engine, state, names)
        if config.deepspeed.precision == "fp16":
            restore_loss_scaler(engine, manifest)
    with _timed(seconds, "verify"):
        rates = schedule.lrs(min(engine.global_steps, schedule.total_steps - 1))
        set_lrs(engine, rates)
        verified = verify_engine(engine, state, names, weights, rates, allowed, ranks)
        loss, problems = _compare_probe(engine, probe, manifest, config, verified, allowed)
        problems += _compare_samples(manifest, prepared)
        raise_problems_on_all_ranks(ranks, "the run would not continue from its saved state", problems)
    event = {
        "step": manifest.run.position.step,
        "source": str(prepared.source),
        "line": _line(verified, manifest, loss, ranks.size, allowed),
        "seconds": seconds,
        "world_before": manifest.world_size,
        "world_size": ranks.size,
    }
    return engine, manifest, event


class RunningLoss:
    """Mean training loss of the last steps, compared once with the saved mean after a resume."""

    def __init__(self) -> None:
        self.saved: float | None = None
        self._losses: deque[float] = deque(maxlen=AVERAGED_STEPS)

    @property
    def mean(self) -> float | None:
        """Mean loss of the last steps; None before the first."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def add(self, loss: float, step: int, log: RunLog) -> None:
        """Add the loss of a step; log the comparison after enough steps."""
        self._losses.append(loss)
        if self.saved is None or len(self._losses) < AVERAGED_STEPS or self.mean is None:
            return
        jump = self.mean > JUMP * self.saved
        log.event("loss_after_resume", step=step, running=self.mean, saved=self.saved, jump=jump)
        log.say(
            f"train loss over {AVERAGED_STEPS} steps after resuming {self.mean:.4f}, "
            f"saved {self.saved:.4f}: {'WARNING: it has jumped' if jump else 'as expected'}"
        )
        self.saved = None


def next_samples(
    config: RunConfig, store: Store, plan: StepPlan, epoch: int, step_in_epoch: int
) -> NextSamples | None:
    """Return count and hash of the next step's samples, for any world size; None after the last step."""
    if step_in_epoch >= plan.steps_per_epoch:
        epoch, step_in_epoch = epoch + 1, 0
    if epoch >= config.training.epochs:
        return None
    table = sample_table(config, store.times, "train")
    places = plan.step_places(step_in_epoch)
    samples = epoch_order(config.training.seed, epoch, len(table))[places.start : places.stop]
    times, leads = table.lookup(samples)
    digest = hashlib.sha256(times.astype("datetime64[h]").astype("<i8").tobytes())
    digest.update(leads.astype("<i8").tobytes())
    return NextSamples(epoch=epoch, step_in_epoch=step_in_epoch, count=len(places), sha256=digest.hexdigest())


def _compare_probe(
    engine: Any, batch: Batch, manifest: Manifest, config: RunConfig, verified: Verified, allowed: Allowed
) -> tuple[float, list[str]]:
    """Return the probe loss and its difference from the saved one, unless an allowed change affects it."""
    loss, saved = probe_loss(engine, batch), manifest.run.losses.probe
    if saved is None or not _probe_is_compared(verified, allowed):
        return loss, []
    tolerance = PROBE_TOLERANCE[config.deepspeed.precision] * abs(saved)
    if abs(loss - saved) <= tolerance:
        return loss, []
    return loss, [f"probe loss {loss:.9g}, saved {saved:.9g} (tolerance {tolerance:.2g})"]


def _probe_is_compared(verified: Verified, allowed: Allowed) -> bool:
    return not verified.fresh and not any(allowed.allows_change_in(part) for part in PROBE_SETTINGS)


def _compare_samples(manifest: Manifest, prepared: Prepared) -> list[str]:
    """Compare the next step's samples with those predicted when saving."""
    position = manifest.run.position
    if position.next_samples is None or prepared.options.allowed.allows_change("data.store"):
        return []
    place = position.epoch, position.step_in_epoch
    found = next_samples(prepared.config, prepared.store, prepared.plan, *place)
    if found == position.next_samples:
        return []
    return [f"the next samples are {found}, predicted were {position.next_samples}"]


def _line(verified: Verified, manifest: Manifest, loss: float, world: int, allowed: Allowed) -> str:
    """Format the verification line of the log."""
    count = f"{verified.parameters}/{verified.total}"
    fresh = f", {verified.fresh} fresh as allowed" if verified.fresh else ""
    rates = " ".join(f"{group}={lr:.6e}" for group, lr in verified.rates.items())
    saved = manifest.run.losses.probe
    probe = "none" if saved is None else f"{saved:.4f}"
    if saved is not None and not _probe_is_compared(verified, allowed):
        probe += ", not compared because of an allowed change"
    return (
        f"resume verified: {count} parameters, {count} exp_avg, {count} exp_avg_sq{fresh}, step "
        f"{verified.step}, {verified.groups}/{len(verified.rates)} groups, lr {rates}, probe loss {loss:.4f} "
        f"(saved {probe}), world {manifest.world_size} -> {world}"
    )


def data_changed(manifest: Manifest, prepared: Prepared) -> bool:
    """Return True if validation losses of the saved run are of other data or of another weighting."""
    run, now = manifest.run, json.loads(prepared.config.to_json())
    settings = [change.path for change in config_changes(run.config, now)]
    other = any(path.startswith("data.") or path == "training.area_weighted_loss" for path in settings)
    return other or run.data_digest not in (None, prepared.store.digest)


def model_groups(config: RunConfig, model: AirQualityViT) -> tuple[GroupInfo, ...]:
    """Return the optimizer groups of a model as a manifest lists them."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return tuple(
        GroupInfo(
            name=group,
            hyperparameters={},
            next_lr=None,
            parameters=tuple(TensorInfo.of(name, trained[name]) for name in names),
        )
        for group, names in group_parameters(trained, config).items()
    )


def other_tensors(model: AirQualityViT) -> tuple[TensorInfo, ...]:
    """Return the frozen parameters and persistent buffers of a model."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in every}
    return tuple(TensorInfo.of(name, tensor) for name, tensor in (frozen | buffers).items())


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[part] = round(seconds.get(part, 0.0) + time.monotonic() - began, 3)
