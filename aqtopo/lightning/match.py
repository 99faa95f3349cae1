"""Matching of a Lightning file's numbered parameters with a run's, by name, group and position in a group."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqtopo.checkpoint.manifest import GroupInfo, TensorInfo
from aqtopo.refusal import raise_problems
from aqtopo.training.initial_weights import PREFIX

NAMED_PARAMETERS = "named_parameters"
"""Value of `--order` for groups built by iterating over the model's parameters."""

BUILT_IN_MAP = ((PREFIX, ""), (r"^patch_embed\.", "token_embeds."))
"""Renaming rules for the prefixes of Lightning, DDP and torch.compile, and for TopoFlow's own names."""

RATE_TOLERANCE = 1e-6
"""Relative tolerance: Lightning's schedulers multiply rates at each step; ours are closed formulas."""

Shapes = Mapping[int, tuple[int, ...]]
"""Shapes of the moments by parameter number in the file."""

Rules = Sequence[tuple[str, str]]
"""Patterns and their replacements."""


@dataclass(frozen=True)
class ParameterOrder:
    """The user's statement on the order of parameters in the file's groups.

    Attributes:
        stated: True if the user gave `--order`; otherwise the file must determine the order.
        names: names of the run or of the file in that order; empty for the order of the state dict.
    """

    stated: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> "ParameterOrder":
        """Parse the value of `--order`.

        Raises:
            ValueError: the value is neither `named_parameters` nor a file of names.
        """
        if text is None or text == NAMED_PARAMETERS:
            return cls(stated=text is not None)
        try:
            names = Path(text).read_text(encoding="utf-8-sig").split() if Path(text).is_file() else []
        except UnicodeDecodeError as error:
            raise ValueError(
                f"--order {text}: byte {error.start} is not UTF-8. Save it as UTF-8 text."
            ) from error
        if not names:
            raise ValueError(
                f"--order {text}: there is no such file, or it is empty. Name a file with one parameter "
                f"name per line, or write --order {NAMED_PARAMETERS}."
            )
        return cls(True, tuple(names))

    def positions(self, listed: Sequence[str], groups: Sequence[GroupInfo], rules: Rules) -> dict[str, int]:
        """Return the position of every trained parameter in the order; `listed` is the renamed state dict's.

        Raises:
            RefusedError: the user's order lacks parameters, or has unknown ones.
        """
        order = list(rename(self.names, rules).values()) if self.names else list(listed)
        positions = {name: place for place, name in enumerate(order)}
        trained = {name for group in groups for name in group.elements}
        problems = [f"it lacks {name}" for name in sorted(trained - positions.keys())]
        if self.names:
            problems += [f"this run does not train {name}" for name in sorted(positions.keys() - trained)]
        raise_problems("the parameters in --order are not those of this run", problems)
        return positions


def rename(names: Iterable[str], rules: Rules) -> dict[str, str]:
    """Return the new name by the file's name; the user's rules are applied before the built-in ones.

    Raises:
        RefusedError: two names get the same new name.
    """
    renamed = {}
    for name in names:
        new = name
        for pattern, replacement in (*rules, *BUILT_IN_MAP):
            new = re.sub(pattern, replacement, new)
        renamed[name] = new
    counts = Counter(renamed.values())
    raise_problems(
        "several tensors of the file would get the same name",
        [f"{old} -> {new}" for old, new in renamed.items() if counts[new] > 1],
        "Rename one of them with --map REGEX=REPLACEMENT.",
    )
    return renamed


def match_groups(
    saved: Sequence[Mapping[str, Any]], shapes: Shapes, groups: Sequence[GroupInfo]
) -> dict[str, int]:
    """Match the run's groups with the file's: by name, else by the shapes in them, else by learning rate.

    The match is one to one and contains every group of the file that has parameters. Learning rates are used
    only if they match for all groups that are still ambiguous.

    Returns:
        Index in the file by group name.

    Raises:
        RefusedError: a group has no match or several; the message lists the candidates.
    """
    left = _eliminated({group.name: _candidates(group, saved, shapes) for group in groups})
    unclear = {name for name, own in left.items() if len(own) > 1}
    for group in groups:
        if group.name in unclear and group.next_lr is not None:
            rate = group.next_lr
            left[group.name] = {i for i in left[group.name] if same_rate(saved[i]["lr"], rate)}
    left = _eliminated(left)
    claims = Counter(i for own in left.values() for i in own)
    problems = [
        f"{group.name} ({len(group.parameters)} parameters) matches "
        f"{f'groups {sorted(own)}' if own else 'no group'} of the file"
        for group in groups
        for own in (left[group.name],)
        if len(own) != 1 or claims[next(iter(own))] > 1
    ]
    problems += [
        f"group {i} of the file matches no group of this run"
        for i, group in enumerate(saved)
        if i not in claims and group["params"]
    ]
    if problems:
        problems += [f"group {i} of the file: {_describe(group)}" for i, group in enumerate(saved)]
    raise_problems(
        "the optimizer's groups cannot be matched", problems, "Use the configuration of the saved run."
    )
    return {name: next(iter(own)) for name, own in left.items()}


def _candidates(group: GroupInfo, saved: Sequence[Mapping[str, Any]], shapes: Shapes) -> set[int]:
    named = {i for i, theirs in enumerate(saved) if theirs.get("name") == group.name}
    wanted = sorted(tensor.shape for tensor in group.parameters)
    return named or {
        i for i, theirs in enumerate(saved) if sorted(shapes[n] for n in theirs["params"]) == wanted
    }


def _eliminated(candidates: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """Remove from every group the only candidate of another group, until nothing changes."""
    left = dict(candidates)
    while True:
        taken = {i for own in left.values() if len(own) == 1 for i in own}
        fewer = {name: own if len(own) == 1 else own - taken for name, own in left.items()}
        if fewer == left:
            return left
        left = fewer


def _describe(group: Mapping[str, Any]) -> str:
    name = f"{group['name']}, " if "name" in group else ""
    return f"{name}{len(group['params'])} parameters, lr {group['lr']:.6e}"


def match_parameters(
    name: str, saved: Mapping[str, Any], shapes: Shapes, listed: Sequence[TensorInfo], rules: Rules
) -> dict[str, int]:
    """Return the parameter number in the file by parameter name, for one group.

    Args:
        name: name of the group.
        saved: group of the file.
        shapes: shapes of the moments by number.
        listed: parameters of the group, in their assumed order.
        rules: renaming rules for the parameter names in the file, if it has them.

    Raises:
        RefusedError: names, numbers or shapes do not match; the message shows the candidates.
    """
    numbers = list(saved["params"])
    if "param_names" in saved:
        named, by_name = list(rename(saved["param_names"], rules).values()), {t.name: t for t in listed}
        problems = [f"only the file has {n}" for n in named if n not in by_name]
        problems += [f"only this run has {n}" for n in by_name if n not in named]
        raise_problems(
            f"group {name} of the file has other parameters",
            problems,
            "Rename with --map, or correct --config.",
        )
        listed = [by_name[n] for n in named]
    sizes = [f"it has {len(numbers)}, in this run {len(listed)}"] if len(numbers) != len(listed) else []
    raise_problems(f"group {name} of the file has another number of parameters", sizes)
    problems = [
        f"{tensor.name} {list(tensor.shape)}: parameter {number} of the file has {list(shapes[number])}; "
        f"candidates {[n for n in numbers if shapes[n] == tensor.shape]}"
        for tensor, number in zip(listed, numbers, strict=True)
        if shapes[number] != tensor.shape
    ]
    raise_problems(
        f"group {name} lists its parameters in another order than the state dict",
        problems,
        "Give the order: --order FILE, one parameter name per line.",
    )
    return {tensor.name: number for tensor, number in zip(listed, numbers, strict=True)}


def same_rate(one: float, other: float) -> bool:
    """Return True if two learning rates are equal up to rounding."""
    return abs(one - other) <= RATE_TOLERANCE * max(abs(one), abs(other))
