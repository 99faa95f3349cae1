"""Restore of a saved state into a fresh engine by name, and its verification.

Each rank reads only the elements that it owns, from the universal layout. DeepSpeed's own loader is not
used: it matches groups by position, lets the checkpoint override the configuration, and fails on ranks
without elements of a group.

Verification compares every element with the files, bit for bit. The restore computes the position of each
parameter in ZeRO's parts; the verification reads it from DeepSpeed's links. So it finds an error in either.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from aqtopo.checkpoint.changes import Allowed
from aqtopo.checkpoint.engine_state import engine_groups, optimizer_step, owned_fragments, scaler_state
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, GroupInfo, Manifest
from aqtopo.checkpoint.shards import KINDS, MASTER, fragments, same_bits
from aqtopo.checkpoint.universal import UniversalState
from aqtopo.distributed.process_group import (
    RankGroup,
    gather_mappings,
    raise_problems_on_all_ranks,
    refusals_on_all_ranks,
)

SavedNames = Mapping[str, str | None]
"""Saved name by the run's name; None for a parameter that starts fresh."""

HYPERPARAMETERS = ("weight_decay", "betas", "eps")
"""Hyperparameters of a group, besides the learning rate, that affect a step."""

RATE_SETTINGS = ("optimizer.base_lr", "optimizer.groups", "schedule", "training.epochs")
"""Settings that determine the learning rates."""

DIFFERENT = "different"
NOT_RESTORED = "the restored state differs from the saved one"


def read_weights(folder: Path, ranks: RankGroup) -> dict[str, Tensor]:
    """Return weights, frozen parameters and buffers by saved name; each rank reads its shard of the file.

    Raises:
        RefusedError: on all ranks: the file is not a valid safetensors file.
    """
    path = folder / WEIGHTS_FILE
    size = path.stat().st_size
    length = -(-size // ranks.size)
    part = np.zeros(length, np.uint8)
    with path.open("rb") as file:
        file.seek(ranks.rank * length)
        data = file.read(length)
    part[: len(data)] = np.frombuffer(data, np.uint8)
    whole = ranks.gather_parts(torch.from_numpy(part))[:size]
    with refusals_on_all_ranks(ranks, f"{path} cannot be read", (SafetensorError,)):
        return load(whole.numpy().tobytes())


def load_module(module: nn.Module, weights: Mapping[str, Tensor], names: SavedNames) -> None:
    """Load weights, frozen parameters and buffers strictly, before the engine is built.

    From a universal checkpoint DeepSpeed restores only the trained parameters, and reports nothing.
    """
    state = module.state_dict()
    for name, tensor in state.items():
        saved = names.get(name, name)
        if saved is not None:
            assert saved in weights, saved
            tensor.copy_(weights[saved])
    module.load_state_dict(state, strict=True)


def restore_engine(engine: Any, state: UniversalState, names: SavedNames) -> None:
    """Fill this rank's part of every group (weights, moments, step count) and the engine's counters.

    The engine is fresh, around a module that holds the saved weights.
    """
    zero, manifest = engine.optimizer, state.manifest
    for index, group in enumerate(engine_groups(engine)):
        master = zero.single_partition_of_fp32_groups[index]
        moments = {
            kind: torch.zeros_like(master, dtype=torch.float32).requires_grad_(False) for kind in KINDS[1:]
        }
        parts = {MASTER: master.data, **moments}
        for fragment in fragments(group.elements, engine.world_size, engine.global_rank):
            saved = names[fragment.name]
            if saved is not None:
                for kind, part in parts.items():
                    part[fragment.in_part] = state.elements(saved, kind, fragment.in_parameter)
        step = manifest.optimizer_steps.get(group.name, max(manifest.optimizer_steps.values()))
        zero.optimizer.state[master] = {"step": _step_value(zero.optimizer, index, step), **moments}
    # DeepSpeed may already have linked parameters to the previous moments.
    zero._hp_optimizer_states_linked = False
    zero.update_lp_params()
    for name, value in manifest.counters.items():
        setattr(engine, name, value)


def restore_loss_scaler(engine: Any, manifest: Manifest) -> None:
    """Restore the loss scale if both runs scale dynamically; otherwise keep the configuration's.

    DeepSpeed takes any scaler from the checkpoint: fp16 after bf16 would continue with a static scale of 1,
    and bf16 after fp16 would skip steps.
    """
    if scaler_state(engine) is None or engine.optimizer.loss_scaler.dtype != torch.float16:
        return
    scaler = engine.optimizer.loss_scaler
    for name, value in (manifest.loss_scaler or {}).items():
        setattr(scaler, name, type(getattr(scaler, name))(value))


def _step_value(optimizer: Any, index: int, step: float) -> Any:
    """Return the step count as the optimizer stores it: PyTorch's as a tensor, DeepSpeed's as an integer."""
    if not isinstance(optimizer, torch.optim.Adam):
        optimizer.param_groups[index]["step"] = int(step)
        return int(step)
    group = optimizer.param_groups[index]
    on_device = group.get("fused") or group.get("capturable")
    device = group["params"][0].device if on_device else torch.device("cpu")
    return torch.tensor(step, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Verified:
    """Result of a successful verification.

    Attributes:
        parameters: trained parameters whose fp32 weights and moments are equal, of `total`.
        total: trained parameters of the run.
        fresh: number of them that start without a saved state, as allowed.
        rates: learning rate by group, as the optimizer holds it.
        groups: number of groups in the saved state whose step, rate and hyperparameters are equal, or differ
            as allowed.
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
    ranks: RankGroup,
) -> Verified:
    """Compare a restored engine with the files, on every rank.

    The engine has the learning rates of its next step; `rates` are those of this run's schedule, by group.
    `weights` are the expected contents of the module, by saved name.

    Raises:
        RefusedError: on all ranks: it names the differences, with values.
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
    totals = sum((Counter(count) for count in counts.values()), Counter[str]())
    elements = {name: count for group in groups for name, count in group.elements.items()}
    resumed = [name for name in elements if names[name] is not None]
    if not totals[DIFFERENT]:
        problems += [
            f"{name} {kind}: {totals[f'{name} {kind}']} of {elements[name]} elements were compared"
            for name in resumed
            for kind in KINDS
            if totals[f"{name} {kind}"] != elements[name]
        ]
    raise_problems_on_all_ranks(ranks, NOT_RESTORED, [f"rank {ranks.rank}: {text}" for text in problems])
    held = {group.name: float(group.hyperparameters["lr"]) for group in groups}
    fresh = len(elements) - len(resumed)
    return Verified(len(resumed), len(elements), fresh, held, len(compared), engine.global_steps)


def _fragment_problems(
    engine: Any, state: UniversalState, names: SavedNames, equal: Counter[str]
) -> Iterator[str]:
    """Compare this rank's fragments, and count the equal elements in `equal`."""
    zero, weights = engine.optimizer, dict(engine.module.named_parameters())
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        held = {MASTER: master, **{kind: zero.optimizer.state[master].get(kind) for kind in KINDS[1:]}}
        for name, place, part in owned_fragments(zero, index):
            saved = names[name]
            if saved is None:
                continue
            for kind, buffer in held.items():
                expected = state.elements(saved, kind, slice(place.start, place.start + place.numel))
                found = None if buffer is None else buffer.detach().narrow(0, part.start, part.numel).cpu()
                if kind == MASTER:
                    weight = weights[name].detach().flatten().narrow(0, place.start, place.numel).cpu()
                    if not same_bits(weight, expected.to(weight.dtype)):
                        yield f"{name} in the module: {_difference(weight, expected.to(weight.dtype))}"
                if found is not None and same_bits(found, expected):
                    equal[f"{name} {kind}"] += place.numel
                else:
                    yield f"{name} {kind}: {_difference(found, expected)}"


def _module_problems(
    engine: Any, manifest: Manifest, names: SavedNames, weights: Mapping[str, Tensor]
) -> Iterator[str]:
    """Compare the module's weights, frozen parameters and buffers completely, on every rank."""
    for name, tensor in engine.module.state_dict().items():
        saved = names.get(name, name)
        info = manifest.parameters.get(manifest.tied.get(saved or "", saved or ""))
        if info is not None and info.dtype not in ("float32", str(tensor.dtype).removeprefix("torch.")):
            continue  # the saved weights are rounded; the fp32 masters are compared by fragment
        if saved is not None and not same_bits(tensor.cpu(), weights[saved].to(tensor.dtype)):
            yield f"{name} in the module: {_difference(tensor.cpu(), weights[saved].to(tensor.dtype))}"


def _rate_problems(
    group: GroupInfo, rates: Mapping[str, float], saved: GroupInfo | None, allowed: Allowed
) -> Iterator[str]:
    """Compare the optimizer's learning rate with the run's schedule and with the saved prediction."""
    held = group.hyperparameters["lr"]
    if held != rates[group.name]:
        yield f"group {group.name}: lr {held:.9g}, but this run's schedule has {rates[group.name]:.9g}"
        return
    predicted = None if saved is None else saved.next_lr
    if predicted not in (None, held) and not any(allowed.allows_change_in(path) for path in RATE_SETTINGS):
        yield f"group {group.name}: the next lr is {held:.9g}, but the save predicted {predicted:.9g}"


def _group_problems(
    group: GroupInfo, step: float, manifest: Manifest, saved: GroupInfo, allowed: Allowed
) -> Iterator[str]:
    """Compare the optimizer's step count and hyperparameters of a group with the saved ones."""
    expected = manifest.optimizer_steps[group.name]
    if step != expected:
        yield f"group {group.name}: step {step:g} instead of {expected:g}"
    for key in HYPERPARAMETERS:
        found, wanted = (side.hyperparameters.get(key) for side in (group, saved))
        if found != wanted and not allowed.allows_change(f"optimizer.{key}"):
            yield f"group {group.name}: {key} {found} instead of {wanted}"


def _counter_problems(engine: Any, state: UniversalState) -> Iterator[str]:
    for name, expected in state.manifest.counters.items():
        if getattr(engine, name) != expected:
            yield f"{name}: {getattr(engine, name)} instead of {expected}"


def _difference(found: Tensor | None, expected: Tensor) -> str:
    """Describe the number of different elements and the first of them."""
    if found is None:
        return "missing in the optimizer"
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    differs = torch.flatten(found != expected)
    place = int(differs.nonzero()[0]) if bool(differs.any()) else 0
    values = f"{found.flatten()[place].item():.9g} instead of {expected.flatten()[place].item():.9g}"
    return f"{int(differs.sum())} of {found.numel()} elements differ, the first is {values}"
