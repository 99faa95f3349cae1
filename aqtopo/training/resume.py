"""Going on from a saved state, and proving that it is the saved state before the first step.

Files are checked, the state is put into the universal layout, weights are loaded into the module, the engine
is made, ZeRO's parts are filled by name, and everything is compared again with the files. Any difference
refuses the resume on all ranks alike.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aqtopo.checkpoint.changes import Allowed, check_changes, config_changes, match_names
from aqtopo.checkpoint.engine_state import check_restorable
from aqtopo.checkpoint.manifest import MANIFEST_FILE, GroupInfo, Manifest, TensorInfo, read_manifest
from aqtopo.checkpoint.ranks import RankGroup, raise_problems_on_all_ranks
from aqtopo.checkpoint.restore import (
    Verified,
    load_module,
    read_weights,
    restore_engine,
    restore_loss_scaler,
    verify_engine,
)
from aqtopo.checkpoint.tags import CHECKPOINTS, check_pointer, find_tag, last_tag
from aqtopo.checkpoint.universal import LATEST, folder_in, open_universal
from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.samples import StepPlan
from aqtopo.data.store import Store
from aqtopo.model import AirQualityViT
from aqtopo.refusal import raise_problems
from aqtopo.training.engine import build_engine, set_lrs
from aqtopo.training.groups import group_parameters
from aqtopo.training.position import next_samples
from aqtopo.training.probe import TOLERANCE, probe_loss
from aqtopo.training.schedule import Schedule

AUTO, NEVER = "auto", "never"

CHANGE_PROBE = ("model", "data", "deepspeed.bf16", "deepspeed.fp16")
"""Settings on which the probe loss depends."""


@dataclass(frozen=True)
class ResumeOptions:
    """What was asked for.

    Attributes:
        source: `auto`, `never`, a tag of the run directory, or the path of a saved state.
        allowed: differences that are meant.
    """

    source: str = AUTO
    allowed: Allowed = field(default_factory=Allowed)


def options_now(asked: ResumeOptions | None, saved_before: bool) -> ResumeOptions:
    """What holds for this start.

    Args:
        asked: what the command line said; None never resumes.
        saved_before: this is a batch job's later start, with the command line of its first, which has saved
            since: from there it goes on, and not from where it began once more.
    """
    if saved_before:
        return ResumeOptions()
    return asked or ResumeOptions(NEVER)


@dataclass(frozen=True)
class Resumed:
    """A resumed engine and what was found out on the way.

    Attributes:
        engine: ready for the next step.
        manifest: of the saved state.
        line: the one line that says what was verified.
        seconds: by part.
    """

    engine: Any
    manifest: Manifest
    line: str
    seconds: dict[str, float]


def find_source(run_dir: Path, wanted: str) -> Path | None:
    """The folder of the state to go on from; None for a fresh start.

    Raises:
        ValueError: the named state does not exist.
    """
    if wanted == NEVER:
        return None
    if wanted == AUTO:
        check_pointer(run_dir)
        tag = last_tag(run_dir)
        return None if tag is None else tag.folder(run_dir)
    path = Path(wanted)
    if (path / LATEST).is_file():
        return folder_in(path)
    if (path / MANIFEST_FILE).is_file():
        return path
    if path.is_dir():
        raise ValueError(
            f"--resume {wanted}: the folder holds no saved state ({MANIFEST_FILE} is missing). "
            "Name a tag of the run directory, or the folder of a tag or a universal checkpoint."
        )
    return find_tag(run_dir, wanted).folder(run_dir)


def is_own(source: Path, run_dir: Path) -> bool:
    """Whether a saved state belongs to the run directory."""
    return (run_dir / CHECKPOINTS).resolve() in source.resolve().parents


def check_source(source: Path, config: RunConfig, store: Store, allowed: Allowed) -> None:
    """Compare the saved run's configuration and data with this run's; reads the manifest only.

    Raises:
        RefusedError: they differ in what matters, and it was not allowed.
    """
    run = read_manifest(source).run
    check_changes(config_changes(run.config, json.loads(config.to_json())), allowed)
    if run.data_digest not in (None, store.digest) and not allowed.changes("data.store"):
        raise_problems(
            "the data are not those of the saved run",
            [f"{config.data.store}: digest {store.digest[:12]}, saved {str(run.data_digest)[:12]}"],
            "Put the store back, or say that it is meant: --allow-change data.store",
        )


def resume(
    source: Path,
    config: RunConfig,
    store: Store,
    model: AirQualityViT,
    plan: StepPlan,
    schedule: Schedule,
    probe: Batch,
    allowed: Allowed,
    ranks: RankGroup,
    device: torch.device,
) -> Resumed:
    """Make an engine that goes on from a saved state, and prove that it does.

    Args:
        source: the folder of the state.
        config: the run, already compared with the saved one.
        store: the data.
        model: fresh.
        plan: the run's steps.
        schedule: the run's learning rates.
        probe: the fixed batch.
        allowed: differences that are meant.
        ranks: all processes of the run.
        device: this rank's.

    Raises:
        RefusedError: on all ranks, before any step: files are damaged or something is not as it was saved.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "convert"):
        state = open_universal(source, ranks)
    with _timed(seconds, "load"):
        names = match_names(state.manifest, model_groups(config, model), other_tensors(model), allowed)
        weights = read_weights(state.folder, ranks)
        load_module(model, weights, names)
    with _timed(seconds, "engine"):
        engine = build_engine(config, model, ranks.size, device)
        check_restorable(engine)
    with _timed(seconds, "load"):
        restore_engine(engine, state, names)
        if config.deepspeed.precision == "fp16":
            restore_loss_scaler(engine, state.manifest)
    with _timed(seconds, "verify"):
        rates = schedule.lrs(min(engine.global_steps, schedule.total_steps - 1))
        set_lrs(engine, rates)
        verified = verify_engine(engine, state, names, weights, rates, allowed, ranks)
        loss, problems = _probe(engine, probe, state.manifest, config, verified, allowed)
        problems += _sample_problems(state.manifest, config, store, plan, allowed)
        raise_problems_on_all_ranks(ranks, "the run would not go on where it was saved", problems)
    line = _line(verified, state.manifest, loss, ranks.size)
    return Resumed(engine, state.manifest, line, seconds)


def _probe(
    engine: Any, batch: Batch, manifest: Manifest, config: RunConfig, verified: Verified, allowed: Allowed
) -> tuple[float, list[str]]:
    """The probe loss, and how it differs from the saved one, unless the model was changed on purpose."""
    loss, saved = probe_loss(engine, batch), manifest.run.losses.probe
    changed = any(allowed.changes_within(part) for part in CHANGE_PROBE)
    if saved is None or verified.fresh or changed:
        return loss, []
    tolerance = TOLERANCE[config.deepspeed.precision] * abs(saved)
    if abs(loss - saved) <= tolerance:
        return loss, []
    return loss, [f"probe loss {loss:.9g}, saved {saved:.9g} (tolerance {tolerance:.2g})"]


def _sample_problems(
    manifest: Manifest, config: RunConfig, store: Store, plan: StepPlan, allowed: Allowed
) -> list[str]:
    """Whether the next step takes the samples that were predicted when saving."""
    position = manifest.run.position
    if position.next_samples is None or allowed.changes("data.store"):
        return []
    ours = next_samples(config, store, plan, position.epoch, position.step_in_epoch)
    if ours == position.next_samples:
        return []
    return [f"the next samples are {ours}, predicted were {position.next_samples}"]


def _line(verified: Verified, manifest: Manifest, loss: float, world: int) -> str:
    """What a human greps for."""
    count = f"{verified.parameters}/{verified.total}"
    fresh = f", {verified.fresh} fresh as allowed" if verified.fresh else ""
    rates = " ".join(f"{group}={lr:.6e}" for group, lr in verified.rates.items())
    saved = manifest.run.losses.probe
    return (
        f"resume verified: {count} parameters, {count} exp_avg, {count} exp_avg_sq{fresh}, step "
        f"{verified.step}, {verified.groups}/{len(verified.rates)} groups, lr {rates}, probe loss {loss:.4f} "
        f"(saved {'none' if saved is None else f'{saved:.4f}'}), world {manifest.world_size} -> {world}"
    )


def model_groups(config: RunConfig, model: AirQualityViT) -> tuple[GroupInfo, ...]:
    """The groups that the engine will have."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return tuple(
        GroupInfo(
            name=group,
            hyperparameters={},
            next_lr=None,
            parameters=tuple(_info(name, trained[name]) for name in names),
        )
        for group, names in group_parameters(trained, config).items()
    )


def other_tensors(model: AirQualityViT) -> tuple[TensorInfo, ...]:
    """Frozen parameters and persistent buffers."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in every}
    return tuple(_info(name, tensor) for name, tensor in (frozen | buffers).items())


def _info(name: str, tensor: torch.Tensor) -> TensorInfo:
    return TensorInfo(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[part] = round(seconds.get(part, 0.0) + time.monotonic() - began, 3)
