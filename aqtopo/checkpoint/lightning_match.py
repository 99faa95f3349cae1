"""Which of a Lightning file's numbered parameters is which of a run's: names, groups, places in a group."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqtopo.checkpoint.manifest import GroupInfo, TensorInfo
from aqtopo.refusal import refuse

NAMED_PARAMETERS = "named_parameters"
"""What `--order` is given where the groups were made by going through the model's parameters."""

PREFIX = r"^(model|net|module|climax|_orig_mod)\."
BUILT_IN_MAP = ((PREFIX, ""), (PREFIX, ""), (PREFIX, ""), (r"^patch_embed\.", "token_embeds."))
"""Prefixes that Lightning, DDP, torch.compile and the published TopoFlow put in front, and its own name."""

RATE_TOLERANCE = 1e-6

Shapes = Mapping[int, tuple[int, ...]]
"""Of the moments, by the file's number."""

Rules = Sequence[tuple[str, str]]
"""Patterns and what replaces them."""


@dataclass(frozen=True)
class Listing:
    """What the user says of the order in which the file's groups listed their parameters.

    Attributes:
        stated: whether anything was said; else the file itself must decide.
        names: the run's or the file's names in that order; empty: the order of the state dict.
    """

    stated: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> "Listing":
        """Read `--order`.

        Raises:
            ValueError: it is neither `named_parameters` nor a file of names.
        """
        if text is None or text == NAMED_PARAMETERS:
            return cls(stated=text is not None)
        names = Path(text).read_text().split() if Path(text).is_file() else []
        if not names:
            raise ValueError(
                f"--order {text}: there is no such file, or no name in it. Name a file with one parameter "
                f"name a line, or write --order {NAMED_PARAMETERS}."
            )
        return cls(True, tuple(names))

    def ranks(self, listed: Sequence[str], groups: Sequence[GroupInfo], rules: Rules) -> dict[str, int]:
        """Place of every trained parameter in the order.

        Args:
            listed: the state dict's names, already renamed.
            groups: the run's.
            rules: for names that are still the file's.

        Raises:
            RefusedError: the user's order lacks some, or has others.
        """
        order = list(rename(self.names, rules).values()) if self.names else list(listed)
        ranks = {name: place for place, name in enumerate(order)}
        trained = {name for group in groups for name in group.elements}
        problems = [f"it lacks {name}" for name in sorted(trained - ranks.keys())]
        if self.names:
            problems += [f"this run does not train {name}" for name in sorted(ranks.keys() - trained)]
        refuse("the order of the parameters (--order) is not that of this run's", problems)
        return ranks


def rename(names: Iterable[str], rules: Rules) -> dict[str, str]:
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
    counts = Counter(renamed.values())
    refuse(
        "several tensors of the file would get the same name",
        [f"{old} -> {new}" for old, new in renamed.items() if counts[new] > 1],
        "Tell them apart with --map REGEX=REPLACEMENT",
    )
    return renamed


def match_groups(
    saved: Sequence[Mapping[str, Any]], shapes: Shapes, groups: Sequence[GroupInfo]
) -> dict[str, int]:
    """Which of the file's groups is which of the run's: by name, else by the shapes in it, else by its rate.

    No group of the file goes to two of the run's, and none that holds parameters is left over. Rates decide
    only where they fit for all the groups that are still in question.

    Returns:
        Index in the file by group name.

    Raises:
        RefusedError: a group has no partner or several; the message shows the candidates.
    """
    left = _eliminated({group.name: _candidates(group, saved, shapes) for group in groups})
    unclear = {name for name, own in left.items() if len(own) > 1}
    for group in groups:
        if group.name in unclear and group.next_lr is not None:
            rate = group.next_lr
            left[group.name] = {i for i in left[group.name] if _close(saved[i]["lr"], rate)}
    left = _eliminated(left)
    claims = Counter(i for own in left.values() for i in own)
    problems = [
        f"{group.name} ({len(group.parameters)} parameters) fits "
        f"{f'groups {sorted(own)}' if own else 'none'} of the file's"
        for group in groups
        for own in (left[group.name],)
        if len(own) != 1 or claims[next(iter(own))] > 1
    ]
    problems += [
        f"group {i} of the file is none of this run's"
        for i, group in enumerate(saved)
        if i not in claims and group["params"]
    ]
    if problems:
        problems += [f"the file's {i}: {_describe(group)}" for i, group in enumerate(saved)]
    refuse("the optimizer's groups cannot be told apart", problems, "Use the configuration of the saved run.")
    return {name: next(iter(own)) for name, own in left.items()}


def _candidates(group: GroupInfo, saved: Sequence[Mapping[str, Any]], shapes: Shapes) -> set[int]:
    named = {i for i, theirs in enumerate(saved) if theirs.get("name") == group.name}
    wanted = sorted(tensor.shape for tensor in group.parameters)
    return named or {
        i for i, theirs in enumerate(saved) if sorted(shapes[n] for n in theirs["params"]) == wanted
    }


def _eliminated(candidates: Mapping[str, set[int]]) -> dict[str, set[int]]:
    """Take from every group what is the only candidate of another, until nothing changes."""
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
    """The file's number of each parameter of a group.

    Args:
        name: the group.
        saved: the file's group.
        shapes: of the moments.
        listed: the group's parameters, in the order in which it is believed to have listed them.
        rules: for the names that the optimizer was given, if the file has them.

    Raises:
        RefusedError: names, numbers or shapes do not fit; the message shows where each parameter could be.
    """
    numbers = list(saved["params"])
    if "param_names" in saved:
        named, by_name = list(rename(saved["param_names"], rules).values()), {t.name: t for t in listed}
        problems = [f"it names {n}, this run does not" for n in named if n not in by_name]
        problems += [f"it does not name {n}" for n in by_name if n not in named]
        refuse(f"group {name} of the file has other parameters", problems, "Rename with --map, or --config.")
        listed = [by_name[n] for n in named]
    sizes = [f"it has {len(numbers)}, in this run {len(listed)}"] if len(numbers) != len(listed) else []
    refuse(f"group {name} of the file has another number of parameters", sizes)
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


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= RATE_TOLERANCE * max(abs(one), abs(other))
