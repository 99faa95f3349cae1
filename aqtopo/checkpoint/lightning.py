"""Importing a Lightning DDP checkpoint: weights and Adam's moments by name, so that ZeRO-2 can go on from it.

A Lightning file keys the optimizer's state by integers: the i-th parameter that its groups listed. Groups are
recognised by their names, else by the shapes they hold, else by their learning rates. Inside a group the
names are those the optimizer was given (`param_names`), else the user's `--order`, else the order of the
file's own state dict, in which `named_parameters()` lists them: then every moment must have its parameter's
shape, and where shapes are equal the moments themselves must bear it out. What fits nothing, or several, is
refused with the candidates: the alternative is another tensor's moments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from aqtopo.checkpoint.convert import write_universal
from aqtopo.checkpoint.files import FileRecord, settle, write_tensors
from aqtopo.checkpoint.lightning_match import (
    NAMED_PARAMETERS,
    Listing,
    Rules,
    match_groups,
    match_parameters,
    rename,
)
from aqtopo.checkpoint.lightning_proof import borne_out, refuted, undecided
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, TensorInfo
from aqtopo.checkpoint.pickles import load_data
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.shards import MASTER
from aqtopo.refusal import refuse


@dataclass(frozen=True)
class ImportedTensors:
    """Weights and moments by the run's names."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]

    def tensor(self, name: str, kind: str) -> Tensor:
        """The whole fp32 tensor of a parameter: its weight or a moment."""
        found = self.weights[name] if kind == MASTER else self.moments[name][kind]
        return found.detach().float().contiguous()

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        """Consecutive elements of the flattened tensor."""
        return self.tensor(name, kind).flatten()[place]


def read_lightning(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint's content, without running any code in it.

    Raises:
        ValueError: it lacks what a resume needs.
        RefusedError: it cannot be read, or holds more than data.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Name a Lightning checkpoint, such as last.ckpt.")
    content = load_data(path)
    wanted = ("state_dict", "optimizer_states", "epoch", "global_step")
    missing = [key for key in wanted if not isinstance(content, dict) or key not in content]
    if missing or len(content["optimizer_states"]) != 1:
        what = f"it lacks {', '.join(missing)}" if missing else "it has not exactly one optimizer"
        raise ValueError(
            f"{path} is no checkpoint from which training can go on: {what}. "
            "Save with save_weights_only=False, and with one optimizer."
        )
    return dict(content)


@dataclass(frozen=True)
class Matched:
    """What of a file belongs to a group of the run.

    Attributes:
        group: the run's.
        saved: the file's.
        numbers: the file's number by parameter name.
    """

    group: GroupInfo
    saved: Mapping[str, Any]
    numbers: Mapping[str, int]


def collect(
    content: Mapping[str, Any],
    groups: Sequence[GroupInfo],
    others: Sequence[TensorInfo],
    rules: Rules,
    listing: Listing,
    unneeded: Callable[[str], bool] = lambda _: False,
) -> tuple[ImportedTensors, dict[str, float], dict[str, dict[str, Any]]]:
    """Weights and moments by the run's names, the optimizer's steps and the file's groups by the run's.

    Args:
        content: from `read_lightning`.
        groups: the run's, with `next_lr`.
        others: the run's frozen parameters and buffers.
        rules: the user's renaming rules.
        listing: what the user says of the order in which the file's groups listed their parameters.
        unneeded: whether a tensor of the file, by its new name, may be left out.

    Raises:
        RefusedError: names, shapes, sizes or steps do not fit.
    """
    new_names = rename(content["state_dict"], rules)
    infos = {t.name: t for group in groups for t in group.parameters} | {t.name: t for t in others}
    weights = {
        new: content["state_dict"][old] for old, new in new_names.items() if new in infos or not unneeded(new)
    }
    _check_weights(weights, infos)
    optimizer = content["optimizer_states"][0]
    matched = _match(optimizer, groups, listing.ranks(list(weights), groups, rules), rules)
    states = {name: optimizer["state"][number] for own in matched for name, number in own.numbers.items()}
    moments = {
        name: {kind: state[kind] for kind in ("exp_avg", "exp_avg_sq")} for name, state in states.items()
    }
    if not listing.stated:
        _check_order(matched, weights, {name: own["exp_avg"] for name, own in moments.items()})
    steps = {own.group.name: _step(own.group, states) for own in matched}
    return ImportedTensors(weights, moments), steps, {own.group.name: dict(own.saved) for own in matched}


def _match(
    optimizer: Mapping[str, Any], groups: Sequence[GroupInfo], ranks: Mapping[str, int], rules: Rules
) -> list[Matched]:
    """Find the file's group and numbers of every group of the run."""
    shapes = {number: tuple(state["exp_avg"].shape) for number, state in optimizer["state"].items()}
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    lacking = [f"parameter {number} has no moments" for number in numbers if number not in shapes]
    refuse("the file's optimizer state is incomplete", lacking)
    found = match_groups(optimizer["param_groups"], shapes, groups)
    matched = []
    for group in groups:
        saved = optimizer["param_groups"][found[group.name]]
        listed = sorted(group.parameters, key=lambda tensor: ranks[tensor.name])
        matched.append(Matched(group, saved, match_parameters(group.name, saved, shapes, listed, rules)))
    return matched


def _check_order(
    matched: Sequence[Matched], weights: Mapping[str, Tensor], exp_avg: Mapping[str, Tensor]
) -> None:
    """Make sure that no parameter got its moments by its place alone.

    Raises:
        RefusedError: some did; the message shows the candidates.
    """
    fits = borne_out(weights, exp_avg)
    problems = []
    for own in matched:
        left = [] if "param_names" in own.saved else undecided(own.group.parameters, fits)
        for shape in dict.fromkeys(tensor.shape for tensor in left):
            names = [tensor.name for tensor in left if tensor.shape == shape]
            alike = {tensor.name for tensor in own.group.parameters if tensor.shape == shape}
            problems.append(
                f"group {own.group.name}, {list(shape)}: {', '.join(names)}: candidates, parameters "
                f"{sorted(number for name, number in own.numbers.items() if name in alike)} of the file"
                + (", whose moments do not fit the order of the state dict" if refuted(names, fits) else "")
            )
    refuse(
        "the file does not say in which order its groups listed tensors of equal shape",
        problems,
        f"If the code that made the groups went through the model's parameters() or named_parameters(), say "
        f"so: --order {NAMED_PARAMETERS}. If not, --order FILE, one parameter name a line.",
    )


def _step(group: GroupInfo, states: Mapping[str, Mapping[str, Any]]) -> float:
    """The number of updates that all parameters of a group count.

    Raises:
        RefusedError: they differ.
    """
    counted = {float(states[name]["step"]) for name in group.elements}
    different = [f"{group.name}: steps {sorted(counted)}"] if len(counted) > 1 else []
    refuse("parameters of one group made different numbers of steps", different)
    return counted.pop()


def _check_weights(weights: Mapping[str, Tensor], infos: Mapping[str, TensorInfo]) -> None:
    problems = [f"{name} is in the file, but not in this run" for name in weights.keys() - infos.keys()]
    problems += [f"{name} is not in the file" for name in infos.keys() - weights.keys()]
    problems += [
        f"{name} {list(infos[name].shape)}: the file has {list(weights[name].shape)}"
        for name in weights.keys() & infos.keys()
        if tuple(weights[name].shape) != infos[name].shape
    ]
    refuse("the file's weights are not this model's", sorted(problems), "Rename with --map REGEX=REPLACEMENT")


def write_import(manifest: Manifest, tensors: ImportedTensors, out: Path) -> None:
    """Write an imported state as a universal checkpoint."""
    weights = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in tensors.weights.items()
    }

    def write_weights(path: Path) -> FileRecord:
        write_tensors(path, weights)
        return settle(path)

    write_universal(manifest, tensors, write_weights, out / manifest.tag, ALONE)
