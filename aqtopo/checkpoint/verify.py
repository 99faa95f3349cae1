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
from aqtopo.checkpoint.manifest import Manifest
from aqtopo.checkpoint.ranks import Ranks, gather_mappings, refuse_together
from aqtopo.checkpoint.restore import SavedNames
from aqtopo.checkpoint.shards import KINDS, MASTER
from aqtopo.checkpoint.universal import UniversalState

HYPERPARAMETERS = ("weight_decay", "betas", "eps")
NOT_RESUMED = "the restored state is not the saved one"


@dataclass(frozen=True)
class Verified:
    """What was compared and found equal.

    Attributes:
        parameters: trained parameters whose fp32 weights and moments are equal, of `total`.
        total: trained parameters of the run.
        fresh: of these, those that start without a saved state, as was allowed.
        groups: groups whose step and hyperparameters are equal, or differ as was allowed.
    """

    parameters: int
    total: int
    fresh: int
    groups: int


def verify_engine(
    engine: Any,
    state: UniversalState,
    names: SavedNames,
    weights: Mapping[str, Tensor],
    allowed: Allowed,
    ranks: Ranks,
) -> Verified:
    """Compare everything the engine holds with the files, on every rank, with one verdict.

    Args:
        engine: restored.
        state: the saved state.
        names: saved name by the run's name.
        weights: what the module should hold, by saved name.
        allowed: which hyperparameters may differ.
        ranks: all of the engine's.

    Raises:
        RefusedError: on all ranks: it names what differs, and the values.
    """
    equal: Counter[str] = Counter()
    problems = [
        *_module_problems(engine, state.manifest, names, weights),
        *_group_problems(engine, state, allowed),
    ]
    problems += _fragment_problems(engine, state, names, equal)
    problems += _counter_problems(engine, state)
    counts = gather_mappings({str(ranks.rank): equal}, ranks)
    everyones = sum((Counter(count) for count in counts.values()), Counter[str]())
    groups = engine_groups(engine)
    elements = {name: count for group in groups for name, count in group.elements.items()}
    resumed = [name for name in elements if names[name] is not None]
    if not problems:
        problems += [
            f"{name} {kind}: {everyones[f'{name} {kind}']} of {elements[name]} elements were compared"
            for name in resumed
            for kind in KINDS
            if everyones[f"{name} {kind}"] != elements[name]
        ]
    refuse_together(ranks, NOT_RESUMED, [f"rank {ranks.rank}: {problem}" for problem in problems])
    return Verified(len(resumed), len(elements), len(elements) - len(resumed), len(groups))


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


def _group_problems(engine: Any, state: UniversalState, allowed: Allowed) -> Iterator[str]:
    saved = {group.name: group for group in state.manifest.groups}
    for index, group in enumerate(engine_groups(engine)):
        if group.name not in saved:
            continue
        expected = state.manifest.optimizer_steps[group.name]
        step = optimizer_step(engine.optimizer, index)
        if step != expected:
            yield f"group {group.name}: step {step:g} instead of {expected:g}"
        for key in HYPERPARAMETERS:
            ours, theirs = group.hyperparameters.get(key), saved[group.name].hyperparameters.get(key)
            if ours != theirs and theirs is not None and not allowed.change(f"optimizer.{key}"):
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
