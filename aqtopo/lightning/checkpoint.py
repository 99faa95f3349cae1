"""Import of a Lightning DDP checkpoint: weights and Adam's moments by name, as a universal checkpoint.

A Lightning file numbers the optimizer's state: key i is the i-th parameter of its groups. Groups are
identified by name, else by the shapes of their parameters, else by learning rate. The order within a group is
that of the names in the file (`param_names`), else the user's (`--order`), else that of the file's state
dict, which is the order of `named_parameters()`. In the last case every moment must have its parameter's
shape, and moments of equal shape must pass the gradient test of `aqtopo.lightning.moments`. An ambiguous
match is refused with the candidates, because a wrong match assigns another tensor's moments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqtopo.checkpoint.files import FileRecord, load_torch, sync_and_hash, write_tensors
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, TensorInfo
from aqtopo.checkpoint.shards import KINDS, MASTER
from aqtopo.checkpoint.universal import write_universal
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.lightning.match import (
    NAMED_PARAMETERS,
    ParameterOrder,
    Rules,
    match_groups,
    match_parameters,
    rename,
)
from aqtopo.lightning.moments import ambiguous_parameters, contradicted, moments_fit
from aqtopo.refusal import raise_problems


@dataclass(frozen=True)
class ImportedTensors:
    """Weights and moments by the run's names."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]

    def tensor(self, name: str, kind: str) -> Tensor:
        """Return a copy of the whole fp32 tensor of a parameter: its weight or a moment."""
        found = self.weights[name] if kind == MASTER else self.moments[name][kind]
        return found.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def read_lightning(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint without running any code in it.

    Raises:
        ValueError: the file is missing, or incomplete for a resume.
        RefusedError: the file cannot be read, or needs a global that is not allowed.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Name a Lightning checkpoint, such as last.ckpt.")
    content = load_torch(path)
    wanted = ("state_dict", "optimizer_states", "epoch", "global_step")
    missing = [key for key in wanted if not isinstance(content, dict) or key not in content]
    fault = f"it lacks {', '.join(missing)}" if missing else _fault(content)
    if fault:
        raise ValueError(
            f"{path} cannot be resumed from: {fault}. "
            "Save with save_weights_only=False, and with one optimizer."
        )
    return dict(content)


def _fault(content: Mapping[str, Any]) -> str:
    """Return what a Lightning checkpoint lacks in the parts that this module reads; empty if nothing."""
    weights, optimizers = content["state_dict"], content["optimizer_states"]
    if not _is_mapping(weights, str, Tensor):
        return f"its state_dict is no mapping of names to tensors ({type(weights).__name__})"
    if not isinstance(optimizers, list) or len(optimizers) != 1:
        return "it must have exactly one optimizer"
    if not isinstance(optimizers[0], Mapping) or not {"state", "param_groups"} <= optimizers[0].keys():
        return "its optimizer has no state or no param_groups"
    state, groups = optimizers[0]["state"], optimizers[0]["param_groups"]
    if not _is_mapping(state, int, Mapping) or not all(_is_moments(each) for each in state.values()):
        return "its optimizer's state is not that of Adam, by the numbers of the parameters"
    keys = {"params", "lr", "weight_decay", "betas", "eps", "amsgrad"}
    if not isinstance(groups, list) or not all(isinstance(g, Mapping) and keys <= g.keys() for g in groups):
        return f"the groups of its optimizer do not all have {', '.join(sorted(keys))}"
    if not all(isinstance(g["params"], list) and isinstance(g["lr"], float) for g in groups):
        return "a group of its optimizer has no list of parameters or no learning rate"
    return ""


def _is_mapping(found: object, keys: type, values: type) -> bool:
    return isinstance(found, Mapping) and all(
        isinstance(key, keys) and isinstance(value, values) for key, value in found.items()
    )


def _is_moments(found: Mapping[str, Any]) -> bool:
    """Return True for both moments of one shape, and a step count."""
    first, second, step = (found.get(kind) for kind in (*KINDS[1:], "step"))
    counted = isinstance(step, int | float) or (isinstance(step, Tensor) and step.numel() == 1)
    return (
        counted and isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape
    )


@dataclass(frozen=True)
class MatchedGroup:
    """A group of the run, the matching group of the file, and its parameter numbers by parameter name."""

    group: GroupInfo
    saved: Mapping[str, Any]
    numbers: Mapping[str, int]


def collect_tensors(
    content: Mapping[str, Any],
    groups: Sequence[GroupInfo],
    others: Sequence[TensorInfo],
    rules: Rules,
    order: ParameterOrder,
    is_droppable: Callable[[str], bool] = lambda _: False,
) -> tuple[ImportedTensors, dict[str, float], dict[str, dict[str, Any]]]:
    """Return weights and moments by the run's names; steps and the file's groups by the run's group names.

    `content` is from `read_lightning`, and `groups` have `next_lr`. `is_droppable` returns True if the tensor
    of a new name may be left out.

    Raises:
        RefusedError: names, shapes, sizes or steps do not match.
    """
    new_names = rename(content["state_dict"], rules)
    infos = {t.name: t for group in groups for t in group.parameters} | {t.name: t for t in others}
    weights = {
        new: content["state_dict"][old]
        for old, new in new_names.items()
        if new in infos or not is_droppable(new)
    }
    _check_weights(weights, infos)
    optimizer = content["optimizer_states"][0]
    matched = _match(optimizer, groups, order.positions(list(weights), groups, rules), rules)
    states = {name: optimizer["state"][number] for own in matched for name, number in own.numbers.items()}
    moments = {name: {kind: state[kind] for kind in KINDS[1:]} for name, state in states.items()}
    if not order.stated:
        _check_order(matched, weights, {name: own["exp_avg"] for name, own in moments.items()})
    steps = {own.group.name: _step(own.group, states) for own in matched}
    return ImportedTensors(weights, moments), steps, {own.group.name: dict(own.saved) for own in matched}


def _match(
    optimizer: Mapping[str, Any], groups: Sequence[GroupInfo], positions: Mapping[str, int], rules: Rules
) -> list[MatchedGroup]:
    """Match every group of the run with a group and parameter numbers of the file."""
    shapes = {number: tuple(state["exp_avg"].shape) for number, state in optimizer["state"].items()}
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    lacking = [f"parameter {number} has no moments" for number in numbers if number not in shapes]
    raise_problems("the file's optimizer state is incomplete", lacking)
    found = match_groups(optimizer["param_groups"], shapes, groups)
    matched = []
    for group in groups:
        saved = optimizer["param_groups"][found[group.name]]
        listed = sorted(group.parameters, key=lambda tensor: positions[tensor.name])
        matched.append(MatchedGroup(group, saved, match_parameters(group.name, saved, shapes, listed, rules)))
    return matched


def _check_order(
    matched: Sequence[MatchedGroup], weights: Mapping[str, Tensor], exp_avg: Mapping[str, Tensor]
) -> None:
    """Refuse matches for which the position in the state dict is the only evidence."""
    fits = moments_fit(weights, exp_avg)
    problems = []
    for own in matched:
        left = [] if "param_names" in own.saved else ambiguous_parameters(own.group.parameters, fits)
        for shape in dict.fromkeys(tensor.shape for tensor in left):
            names = [tensor.name for tensor in left if tensor.shape == shape]
            alike = {tensor.name for tensor in own.group.parameters if tensor.shape == shape}
            problems.append(
                f"group {own.group.name}, {list(shape)}: {', '.join(names)}: candidates, parameters "
                f"{sorted(number for name, number in own.numbers.items() if name in alike)} of the file"
                + (
                    "; their moments contradict the order of the state dict"
                    if contradicted(names, fits)
                    else ""
                )
            )
    raise_problems(
        "the file does not determine the order of tensors of equal shape in its groups",
        problems,
        f"If the groups were built by iterating over parameters() or named_parameters(): --order "
        f"{NAMED_PARAMETERS}. Otherwise --order FILE, one parameter name per line.",
    )


def _step(group: GroupInfo, states: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the step count of a group; it must be equal for all its parameters."""
    counted = {float(states[name]["step"]) for name in group.elements}
    different = [f"{group.name}: steps {sorted(counted)}"] if len(counted) > 1 else []
    raise_problems("parameters of one group have different step counts", different)
    return counted.pop()


def _check_weights(weights: Mapping[str, Tensor], infos: Mapping[str, TensorInfo]) -> None:
    problems = [f"{name} is in the file, but not in this run" for name in weights.keys() - infos.keys()]
    problems += [f"{name} is not in the file" for name in infos.keys() - weights.keys()]
    problems += [
        f"{name} {list(infos[name].shape)}: the file has {list(weights[name].shape)}"
        for name in weights.keys() & infos.keys()
        if tuple(weights[name].shape) != infos[name].shape
    ]
    raise_problems(
        "the file's weights do not fit this model", sorted(problems), "Rename with --map REGEX=REPLACEMENT."
    )


def write_import(manifest: Manifest, tensors: ImportedTensors, out: Path) -> None:
    """Write an imported state as a universal checkpoint."""
    weights = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in tensors.weights.items()
    }

    def write_weights(path: Path) -> FileRecord:
        write_tensors(path, weights)
        return sync_and_hash(path)

    write_universal(manifest, tensors, write_weights, out / manifest.tag, SINGLE_RANK)
