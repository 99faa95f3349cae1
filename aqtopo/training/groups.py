"""Named optimizer groups: which parameter learns at which rate.

Groups are known by their names, never by their place in a list; every parameter belongs to exactly one.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from aqtopo.config import RunConfig


def group_parameters(names: Iterable[str], config: RunConfig) -> dict[str, list[str]]:
    """Assign every parameter to the group whose patterns match its name.

    Args:
        names: the trainable parameters' names, in the model's order.
        config: the run; `optimizer.groups` holds the glob patterns.

    Returns:
        Parameter names by group, groups in the configured order, parameters in the model's order.

    Raises:
        ValueError: a parameter matches no group or several, or a pattern or a group matches nothing.
    """
    names = list(names)
    groups: dict[str, list[str]] = {group.name: [] for group in config.optimizer.groups}
    problems = _idle_patterns(names, config)
    for name in names:
        owners = [
            group.name
            for group in config.optimizer.groups
            if any(fnmatchcase(name, pattern) for pattern in group.parameters)
        ]
        if len(owners) == 1:
            groups[owners[0]].append(name)
        else:
            found = f"is in {len(owners)} groups ({', '.join(owners)})" if owners else "is in no group"
            problems.append(f"parameter {name} {found}")
    if problems:
        raise ValueError(
            f"optimizer.groups must match each of the model's {len(names)} parameters exactly once: "
            f"{'; '.join(problems[:8])}{' ...' if len(problems) > 8 else ''}. "
            "Change the patterns in optimizer.groups[*].parameters."
        )
    return groups


def _idle_patterns(names: list[str], config: RunConfig) -> list[str]:
    """Patterns that match no parameter: a typo would leave a group half empty without a word."""
    return [
        f"optimizer.groups[{index}].parameters: {pattern!r} ({group.name}) matches no parameter"
        for index, group in enumerate(config.optimizer.groups)
        for pattern in group.parameters
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
