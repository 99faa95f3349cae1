"""Import of a Lightning checkpoint into a run: tensors, position, rates and hyperparameters."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aqtopo.checkpoint.changes import Allowed
from aqtopo.checkpoint.engine_state import as_json
from aqtopo.checkpoint.manifest import Losses, Manifest, RunFacts, package_versions
from aqtopo.checkpoint.tags import Tag
from aqtopo.config import RunConfig
from aqtopo.data.samples import StepPlan, sample_table
from aqtopo.data.store import open_run_store
from aqtopo.lightning.checkpoint import collect_tensors, read_lightning, write_import
from aqtopo.lightning.match import ParameterOrder, Rules, same_rate
from aqtopo.lightning.position import loop_position
from aqtopo.model import Terrain, build_model
from aqtopo.refusal import raise_problems
from aqtopo.training.resume import model_groups, next_samples, other_tensors
from aqtopo.training.schedule import Schedule
from aqtopo.variables import INPUT_VARIABLES, TARGET_VARIABLES

NOT_STATED = ParameterOrder()


def import_lightning(
    path: Path,
    out: Path,
    config: RunConfig,
    rules: Rules = (),
    order: ParameterOrder = NOT_STATED,
    allowed: Allowed | None = None,
) -> Manifest:
    """Convert a Lightning DDP checkpoint to a universal checkpoint of the run that resumes from it.

    `allowed.settings` may contain `schedule` and `optimizer.*`, which then may differ from the file's, and
    `data.variables` and `data.targets`, if the file was trained on others than the published ones.
    `allowed.unexpected` tensors of the file are left out.

    Raises:
        ValueError: the file lacks what is needed, or `out` exists.
        RefusedError: names, shapes, groups, position, rates, inputs or targets do not fit.
    """
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten. Name another folder.")
    allowed = allowed or Allowed()
    _check_channels(path, config, allowed)
    content = read_lightning(path)
    store = open_run_store(config)
    plan = StepPlan.from_config(config, len(sample_table(config, store.times, "train")))
    schedule = Schedule.from_config(config, plan.steps_per_epoch)
    place = loop_position(path, content, plan)
    samples = next_samples(config, store, plan, place.epoch, place.step_in_epoch)
    position = place.model_copy(update={"next_samples": samples})
    rates = schedule.lrs(min(position.step, schedule.total_steps - 1))
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    groups = tuple(g.model_copy(update={"next_lr": rates[g.name]}) for g in model_groups(config, model))
    others = other_tensors(model)
    tensors, steps, saved = collect_tensors(content, groups, others, rules, order, allowed.allows_unexpected)
    _check_hyperparameters(saved, rates, config, allowed)
    keys = ("lr", "weight_decay", "betas", "eps", "amsgrad")
    tag = Tag(position.epoch, position.step, position.step_in_epoch, None, float("nan"))
    manifest = Manifest(
        schema=1,
        layout="universal",
        tag=tag.name,
        run=RunFacts(
            position=position,
            losses=Losses(train=None, running=None, probe=None, best_validation=None, validations_waited=0),
            next_lrs=rates,
            seed=config.training.seed,
            precision=config.deepspeed.precision,
            config=json.loads(config.to_json()),
            config_digest=config.digest,
            data_digest=store.digest,
        ),
        groups=tuple(
            group.model_copy(update={"hyperparameters": {k: as_json(saved[group.name][k]) for k in keys}})
            for group in groups
        ),
        other_tensors=others,
        tied={},
        optimizer="AdamW",
        optimizer_steps=steps,
        zero_stage=2,
        world_size=1,
        global_samples=position.step * config.train_batch,
        skipped_steps=0,
        loss_scaler=None,
        versions=package_versions(),
        origin=f"Lightning {content.get('pytorch-lightning_version', 'of unknown version')}: {path.name}",
    )
    write_import(manifest, tensors, out)
    return manifest


def _check_channels(path: Path, config: RunConfig, allowed: Allowed) -> None:
    """Refuse other inputs or targets than the published ones: the file does not name its own."""
    data = config.data
    own = {"variables": (config.inputs, INPUT_VARIABLES), "targets": (data.targets, TARGET_VARIABLES)}
    raise_problems(
        f"{path}: its weights belong to the published inputs and targets, in their order",
        [
            f"data.{key}: published {', '.join(published)}; in this run {', '.join(names)}"
            for key, (names, published) in own.items()
            if names != published and not allowed.allows_change(f"data.{key}")
        ],
        "If the file was trained on those of this run, in this order, allow it: "
        "--allow-change data.variables --allow-change data.targets",
    )


def _check_hyperparameters(
    saved: Mapping[str, Mapping[str, Any]], rates: Mapping[str, float], config: RunConfig, allowed: Allowed
) -> None:
    """Refuse differences between the file's rates, weight decay, betas and eps and the run's."""
    optimizer = config.optimizer
    expected = {
        "weight_decay": optimizer.weight_decay,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "amsgrad": False,
    }
    problems = [
        f"group {name}: {key} {as_json(group[key])}, in this run {value}"
        for name, group in saved.items()
        for key, value in expected.items()
        if as_json(group[key]) != value and not allowed.allows_change(f"optimizer.{key}")
    ]
    problems += [
        f"group {name}: lr {group['lr']:.9g}, by this run's schedule {rates[name]:.9g}"
        for name, group in saved.items()
        if not same_rate(group["lr"], rates[name]) and not allowed.allows_change("schedule")
    ]
    raise_problems(
        "the file's optimizer differs from this run's",
        problems,
        "Correct the configuration, or allow it: --allow-change schedule, optimizer.weight_decay, ...",
    )
