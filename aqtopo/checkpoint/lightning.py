"""Importing a Lightning DDP checkpoint: weights and Adam's moments by name, so that ZeRO-2 can go on from it.

A Lightning file keys the optimizer's state by integers: the i-th parameter that its groups listed. Groups are
recognised by their names, else by the shapes they hold, else by their learning rates; inside a group the
names are those the optimizer was given (`param_names`), else `--order`, else the order of the file's own
state dict, in which `named_parameters()` lists them. Every moment must then have its parameter's shape. What
fits nothing, or several, is refused with the candidates: the alternative is another tensor's moments.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from aqtopo.checkpoint.convert import write_universal
from aqtopo.checkpoint.files import FileRecord, settle
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, TensorInfo
from aqtopo.checkpoint.pickles import load_data
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.shards import MASTER
from aqtopo.refusal import refuse

BUILT_IN_MAP = (
    (r"^(model|net|module|_orig_mod)\.", ""),
    (r"^(model|net|module|_orig_mod)\.", ""),
    (r"^patch_embed\.", "token_embeds."),
)
"""Prefixes that Lightning, DDP and torch.compile put in front, and the published TopoFlow's own name."""


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


def rename(names: Iterable[str], rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """New name by the file's name: the user's rules first, then the built-in ones.

    Raises:
        RefusedError: two names become one.
    """
    renamed = {}
    for name in names:
        new = name
        for pattern, replacement in (*rules, *BUILT_IN_MAP):
            new = re.sub(pattern, replacement, new)
        renamed[name] = new
    twice = {new for new in renamed.values() if list(renamed.values()).count(new) > 1}
    refuse(
        "several tensors of the file would get the same name",
        [f"{old} -> {new}" for old, new in renamed.items() if new in twice],
        "Tell them apart with --map REGEX=REPLACEMENT",
    )
    return renamed


def match_groups(
    saved: Sequence[Mapping[str, Any]], shapes: Mapping[int, tuple[int, ...]], groups: Sequence[GroupInfo]
) -> dict[str, int]:
    """Which of the file's groups is which of the run's: by name, else by the shapes in it, else by its rate.

    Returns:
        Index in the file by group name.

    Raises:
        RefusedError: a group has no partner or several; the message shows the candidates.
    """
    found, problems = {}, []
    listed = "; ".join(f"{i}: {len(g['params'])} parameters, lr {g['lr']:.6e}" for i, g in enumerate(saved))
    for group in groups:
        wanted = sorted(tensor.shape for tensor in group.parameters)
        candidates = [i for i, g in enumerate(saved) if g.get("name") == group.name] or [
            i for i, g in enumerate(saved) if sorted(shapes[number] for number in g["params"]) == wanted
        ]
        if len(candidates) > 1 and group.next_lr is not None:
            candidates = [i for i in candidates if _close(saved[i]["lr"], group.next_lr)] or candidates
        if len(candidates) == 1:
            found[group.name] = candidates[0]
        else:
            fits = f"fits groups {candidates}" if candidates else "fits none"
            problems.append(
                f"{group.name} ({len(group.parameters)} parameters) {fits} of the file's: {listed}"
            )
    refuse("the optimizer's groups cannot be told apart", problems, "Use the configuration of the saved run.")
    return found


def match_parameters(
    name: str,
    saved: Mapping[str, Any],
    shapes: Mapping[int, tuple[int, ...]],
    listed: Sequence[TensorInfo],
    new_names: Mapping[str, str],
) -> dict[str, int]:
    """The file's number of each parameter of a group.

    Args:
        name: the group.
        saved: the file's group.
        shapes: of the moments, by number.
        listed: the group's parameters, in the order in which it is believed to have listed them.
        new_names: new name by the file's name.

    Raises:
        RefusedError: the shapes do not fit; the message shows where each parameter could be.
    """
    numbers = list(saved["params"])
    if "param_names" in saved:
        named = [new_names.get(old, old) for old in saved["param_names"]]
        by_name = {tensor.name: tensor for tensor in listed}
        refuse(f"group {name} of the file", [f"it names {n}" for n in named if n not in by_name])
        listed = [by_name[n] for n in named]
    problems = [
        f"{tensor.name} {list(tensor.shape)}: parameter {number} of the file has {list(shapes[number])}; "
        f"candidates {[n for n in numbers if shapes[n] == tensor.shape]}"
        for tensor, number in zip(listed, numbers, strict=True)
        if shapes[number] != tensor.shape
    ]
    refuse(
        f"group {name} did not list its parameters in the order of the state dict",
        problems,
        "Say in which order it did: --order FILE, one parameter name a line.",
    )
    return {tensor.name: number for tensor, number in zip(listed, numbers, strict=True)}


def collect(
    content: Mapping[str, Any],
    groups: Sequence[GroupInfo],
    others: Sequence[TensorInfo],
    rules: Sequence[tuple[str, str]],
    order: Sequence[str] = (),
) -> tuple[ImportedTensors, dict[str, float], dict[str, dict[str, Any]]]:
    """Weights and moments by the run's names, the optimizer's steps and the file's groups by the run's.

    Args:
        content: from `read_lightning`.
        groups: the run's, with `next_lr`.
        others: the run's frozen parameters and buffers.
        rules: the user's renaming rules.
        order: the run's names in the order in which the file's groups listed them; empty: the state dict's.

    Raises:
        RefusedError: names, shapes, sizes or steps do not fit.
    """
    new_names = rename(content["state_dict"], rules)
    weights = {new_names[old]: tensor for old, tensor in content["state_dict"].items()}
    infos = {t.name: t for group in groups for t in group.parameters} | {t.name: t for t in others}
    _check_weights(weights, infos)
    optimizer = content["optimizer_states"][0]
    shapes = {number: tuple(state["exp_avg"].shape) for number, state in optimizer["state"].items()}
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    lacking = [f"parameter {number} has no moments" for number in numbers if number not in shapes]
    refuse("the file's optimizer state is incomplete", lacking)
    rank = {name: place for place, name in enumerate(order or weights)}
    found = match_groups(optimizer["param_groups"], shapes, groups)
    moments: dict[str, dict[str, Tensor]] = {}
    steps: dict[str, float] = {}
    saved_groups: dict[str, dict[str, Any]] = {}
    for group in groups:
        saved = optimizer["param_groups"][found[group.name]]
        listed = sorted(group.parameters, key=lambda tensor: rank.get(tensor.name, len(rank)))
        pairs = match_parameters(group.name, saved, shapes, listed, new_names)
        states = {name: optimizer["state"][number] for name, number in pairs.items()}
        counted = {float(state["step"]) for state in states.values()}
        different = [f"{group.name}: steps {sorted(counted)}"] if len(counted) > 1 else []
        refuse("parameters of one group made different numbers of steps", different)
        steps[group.name], saved_groups[group.name] = counted.pop(), dict(saved)
        moments |= {
            n: {kind: state[kind] for kind in ("exp_avg", "exp_avg_sq")} for n, state in states.items()
        }
    return ImportedTensors(weights, moments), steps, saved_groups


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
        save_file(weights, path)
        return settle(path)

    write_universal(manifest, tensors, write_weights, out / manifest.tag, ALONE)


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
