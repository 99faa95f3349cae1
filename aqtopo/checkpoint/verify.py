"""Comparing what an engine holds with what was saved: every element, by name, to the bit.

This goes through DeepSpeed's own links between parameters and ZeRO's parts, not through the arithmetic that
filled them, so that a mistake in either shows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aqtopo.checkpoint.changes import Allowed
from aqtopo.checkpoint.convert import same_bits
from aqtopo.checkpoint.engine_state import engine_groups, optimizer_step, owned_fragments
from aqtopo.checkpoint.manifest import GroupInfo, Manifest
from aqtopo.checkpoint.ranks import Ranks, gather_mappings, refuse_together
from aqtopo.checkpoint.restore import SavedNames
from aqtopo.checkpoint.shards import KINDS, MASTER
from aqtopo.checkpoint.universal import UniversalState

HYPERPARAMETERS = ("weight_decay", "betas", "eps")
"""Of a group, besides its learning rate: those that change what a step does."""

DECIDE_RATES = ("optimizer.base_lr", "optimizer.groups", "schedule", "training.epochs")
"""Settings that the learning rates follow from."""

DIFFERENT = "different"
NOT_RESUMED = "the restored state is not the saved one"


@dataclass(frozen=True)
class Verified:
    """What was compared and found equal.

    Attributes:
        parameters: trained parameters whose fp32 weights and moments are equal, of `total`.
        total: trained parameters of the run.
        fresh: of these, those that start without a saved state, as was allowed.
        rates: learning rate by group, as the optimizer holds it.
        groups: of these, those found in the saved state whose step, rate and hyperparameters are equal, or
            differ as was allowed.
        step: updates made, as the engine counts them.
    """

    parameters: int
    total: int
    fresh: int
    rates: Mapping[str, float]
    groups: int
    step: int


def verify_engine(
    engine: Any,
    state: UniversalState,
    names: SavedNames,
    weights: Mapping[str, Tensor],
    rates: Mapping[str, float],
    allowed: Allowed,
    ranks: Ranks,
) -> Verified:
    """Compare everything the engine holds with the files, on every rank, with one verdict.

    Args:
        engine: restored, and given the rates of its next step.
        state: the saved state.
        names: saved name by the run's name.
        weights: what the module should hold, by saved name.
        rates: those of the next step, by group, as this run's schedule has them.
        allowed: which hyperparameters may differ.
        ranks: all of the engine's.

    Raises:
        RefusedError: on all ranks: it names what differs, and the values.
    """
    equal: Counter[str] = Counter()
    problems = list(_module_problems(engine, state.manifest, names, weights))
    groups = engine_groups(engine)
    saved = {group.name: group for group in state.manifest.groups}
    compared = [group for group in groups if group.name in saved]
    for index, group in enumerate(groups):
        problems += _rate_problems(group, rates, saved.get(group.name), allowed)
        if group in compared:
            step = optimizer_step(engine.optimizer, index)
            problems += _group_problems(group, step, state.manifest, saved[group.name], allowed)
    problems += _fragment_problems(engine, state, names, equal)
    problems += _counter_problems(engine, state)
    counts = gather_mappings({str(ranks.rank): {**equal, DIFFERENT: len(problems)}}, ranks)
    everyones = sum((Counter(count) for count in counts.values()), Counter[str]())
    elements = {name: count for group in groups for name, count in group.elements.items()}
    resumed = [name for name in elements if names[name] is not None]
    if not everyones[DIFFERENT]:
        problems += [
            f"{name} {kind}: {everyones[f'{name} {kind}']} of {elements[name]} elements were compared"
            for name in resumed
            for kind in KINDS
            if everyones[f"{name} {kind}"] != elements[name]
        ]
    refuse_together(ranks, NOT_RESUMED, [f"rank {ranks.rank}: {problem}" for problem in problems])
    held = {group.name: float(group.hyperparameters["lr"]) for group in groups}
    fresh = len(elements) - len(resumed)
    return Verified(len(resumed), len(elements), fresh, held, len(compared), engine.global_steps)


def _fragment_problems(
    engine: Any, state: UniversalState, names: SavedNames, equal: Counter[str]
) -> Iterator[str]:
    """Compare the parts this rank owns; count what is equal."""
    zero, weights = engine.optimizer, dict(engine.module.named_parameters())
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        held = {MASTER: master, **{kind: zero.optimizer.state[master].get(kind) for kind in KINDS[1:]}}
        for name, place, part in owned_fragments(zero, index):
            saved = names[name]
            if saved is None:
                continue
            for kind, buffer in held.items():
                theirs = state.elements(saved, kind, slice(place.start, place.start + place.numel))
                ours = None if buffer is None else buffer.detach().narrow(0, part.start, part.numel).cpu()
                if kind == MASTER:
                    weight = weights[name].detach().flatten().narrow(0, place.start, place.numel).cpu()
                    if not same_bits(weight, theirs.to(weight.dtype)):
                        yield f"{name} in the module: {_difference(weight, theirs.to(weight.dtype))}"
                if ours is not None and same_bits(ours, theirs):
                    equal[f"{name} {kind}"] += place.numel
                else:
                    yield f"{name} {kind}: {_difference(ours, theirs)}"


def _module_problems(
    engine: Any, manifest: Manifest, names: SavedNames, weights: Mapping[str, Tensor]
) -> Iterator[str]:
    """Compare the module's weights, frozen parameters and buffers, whole, on every rank."""
    for name, tensor in engine.module.state_dict().items():
        saved = names.get(name, name)
        info = manifest.parameters.get(manifest.tied.get(saved or "", saved or ""))
        if info is not None and info.dtype not in ("float32", str(tensor.dtype).removeprefix("torch.")):
            continue  # the fp32 masters, compared elsewhere, are finer than the weights that were saved
        if saved is not None and not same_bits(tensor.cpu(), weights[saved].to(tensor.dtype)):
            yield f"{name} in the module: {_difference(tensor.cpu(), weights[saved].to(tensor.dtype))}"


def _rate_problems(
    group: GroupInfo, rates: Mapping[str, float], saved: GroupInfo | None, allowed: Allowed
) -> Iterator[str]:
    """Compare the rate that the optimizer holds with the run's schedule, and with what the file predicted."""
    held = group.hyperparameters["lr"]
    if held != rates[group.name]:
        yield f"group {group.name}: lr {held:.9g}, but this run's schedule has {rates[group.name]:.9g}"
        return
    predicted = None if saved is None else saved.next_lr
    if predicted not in (None, held) and not any(allowed.within(path) for path in DECIDE_RATES):
        yield f"group {group.name}: the next learning rate is {held:.9g}, predicted was {predicted:.9g}"


def _group_problems(
    group: GroupInfo, step: float, manifest: Manifest, saved: GroupInfo, allowed: Allowed
) -> Iterator[str]:
    """Compare what the optimizer holds for a group with what it held when it was saved."""
    expected = manifest.optimizer_steps[group.name]
    if step != expected:
        yield f"group {group.name}: step {step:g} instead of {expected:g}"
    for key in HYPERPARAMETERS:
        ours, theirs = (side.hyperparameters.get(key) for side in (group, saved))
        if ours != theirs and not allowed.change(f"optimizer.{key}"):
            yield f"group {group.name}: {key} {ours} instead of {theirs}"


def _counter_problems(engine: Any, state: UniversalState) -> Iterator[str]:
    for name, expected in (
        ("global_steps", state.manifest.run.position.step),
        ("global_samples", state.manifest.global_samples),
        ("skipped_steps", state.manifest.skipped_steps),
    ):
        if getattr(engine, name) != expected:
            yield f"{name}: {getattr(engine, name)} instead of {expected}"


def _difference(ours: Tensor | None, theirs: Tensor) -> str:
    """Where two tensors differ first, and the values."""
    if ours is None:
        return "the optimizer holds none"
    if ours.shape != theirs.shape:
        return f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    differs = torch.flatten(ours != theirs)
    place = int(differs.nonzero()[0]) if bool(differs.any()) else 0
    values = f"{ours.flatten()[place].item():.9g} instead of {theirs.flatten()[place].item():.9g}"
    return f"{int(differs.sum())} of {ours.numel()} elements differ, the first {values}"
