"""Differences between a resumed run and the saved run; each must be allowed by name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from aqtopo.checkpoint.manifest import GroupInfo, Manifest, TensorInfo
from aqtopo.refusal import raise_problems

FREE_SETTINGS = (
    "name",
    "description",
    "data.store",
    "data.workers",
    "data.worker_start",
    "data.prefetch",
    "data.read_deadline_s",
    "data.stage",
    "training.run_dir",
    "training.initial_weights",
    "training.fresh_weights",
    "training.log_every",
    "training.sanity_micro_batches",
    "checkpoint.*",
    "monitors.*",
    "deepspeed.steps_per_print",
    "deepspeed.log_level",
    "deepspeed.disable_python_gc",
    "deepspeed.dump_state",
    "deepspeed.wall_clock_breakdown",
    "deepspeed.memory_breakdown",
    "deepspeed.comms_logger.*",
    "deepspeed.flops_profiler.*",
    "deepspeed.timers.*",
)
"""Settings that do not affect the trained weights: paths, loading speed, logging."""


@dataclass(frozen=True)
class Allowed:
    """Differences that the user allows.

    Attributes:
        settings: glob patterns over configuration paths, such as `optimizer.base_lr`.
        missing: parameters of the run that may be missing in the saved state.
        unexpected: saved tensors that may be missing in the run.
        renames: new name by saved name.
    """

    settings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)

    def allows_change(self, path: str) -> bool:
        """Return True if the setting at `path` may differ; an allowed section includes its settings."""
        return any(fnmatchcase(path, pattern) or path.startswith(f"{pattern}.") for pattern in self.settings)

    def allows_change_in(self, section: str) -> bool:
        """Return True if a section, or any setting in it, may differ."""
        return self.allows_change(section) or any(
            pattern.startswith(f"{section}.") for pattern in self.settings
        )

    def allows_unexpected(self, name: str) -> bool:
        """Return True if the saved tensor `name` may be missing in the run."""
        return _matches(name, self.unexpected)


def parse_renames(texts: Iterable[str]) -> dict[str, str]:
    """Parse `OLD=NEW` pairs.

    Raises:
        ValueError: a text has another form.
    """
    for text in texts:
        if text.count("=") != 1 or not all(text.split("=")):
            raise ValueError(f"--rename {text}: write OLD=NEW, the saved name and the new name.")
    return dict(text.split("=") for text in texts)


@dataclass(frozen=True)
class ConfigChange:
    """A setting with different values in the saved run and in this run."""

    path: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: saved {self.saved!r}, now {self.now!r}"


def config_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[ConfigChange]:
    """Return the settings that differ, except those in `FREE_SETTINGS`."""
    old, new = dict(_leaves(saved)), dict(_leaves(now))
    changes = [ConfigChange(path, old.get(path), new.get(path)) for path in sorted(old.keys() | new.keys())]
    return [
        change
        for change in changes
        if change.saved != change.now and not any(fnmatchcase(change.path, free) for free in FREE_SETTINGS)
    ]


def check_changes(changes: list[ConfigChange], allowed: Allowed) -> None:
    """Check that every change is allowed.

    Raises:
        RefusedError: some are not; the message lists them and the options that allow them.
    """
    refused = [change for change in changes if not allowed.allows_change(change.path)]
    options = " ".join(f"--allow-change {change.path}" for change in refused[:4])
    raise_problems(
        "the configuration differs from the saved run's",
        [str(change) for change in refused],
        f"Restore the old values, allow the changes: {options}, or start a run in another training.run_dir",
    )


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings with their dotted paths; entries of a list of named items are addressed by name."""
    if isinstance(tree, list) and tree and all(isinstance(i, Mapping) and "name" in i for i in tree):
        tree = {item["name"]: item for item in tree} | {"order": [item["name"] for item in tree]}
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def match_names(
    manifest: Manifest, groups: tuple[GroupInfo, ...], others: tuple[TensorInfo, ...], allowed: Allowed
) -> dict[str, str | None]:
    """Match every tensor of the run (groups, and frozen parameters and buffers) with a saved one, by name.

    Returns:
        Saved name by the run's name; None for a tensor that starts fresh.

    Raises:
        RefusedError: a tensor has no match, or the match has another shape, group or role.
    """
    renamed = {new: old for old, new in allowed.renames.items()}
    now, then = _by_name(groups, others), _by_name(manifest.groups, manifest.other_tensors)
    problems = []
    for old, new in allowed.renames.items():
        if old not in then:
            problems.append(f"--rename {old}={new}: the saved state has no {old}")
        if new not in now:
            problems.append(f"--rename {old}={new}: this run has no {new}")
    wanted = {name: renamed.get(name, name) for name in now}
    names = {name: saved if saved in then else None for name, saved in wanted.items()}
    for name, saved in names.items():
        if saved is not None:
            problems += _match_problems(name, now[name], saved, then[saved], allowed)
        elif not _matches(name, allowed.missing):
            shape = list(now[name][1].shape)
            problems.append(f"{name} {shape}: not in the saved state (--allow-missing {name})")
    problems += [
        f"{name} {list(tensor.shape)}: saved, but not in this run (--allow-unexpected {name})"
        for name, (_, tensor) in then.items()
        if name not in names.values() and not allowed.allows_unexpected(name)
    ]
    raise_problems(
        "the saved state does not fit this model",
        problems,
        "Use the options in parentheses, or give a saved tensor its new name: --rename OLD=NEW",
    )
    return names


def _by_name(groups: Iterable[GroupInfo], others: Iterable[TensorInfo]) -> dict[str, tuple[str, TensorInfo]]:
    """Return group and tensor by the tensor's name; the group of an untrained tensor is empty."""
    trained = {tensor.name: (group.name, tensor) for group in groups for tensor in group.parameters}
    return trained | {tensor.name: ("", tensor) for tensor in others}


def _match_problems(
    name: str, now: tuple[str, TensorInfo], saved: str, then: tuple[str, TensorInfo], allowed: Allowed
) -> Iterator[str]:
    (group, tensor), (other_group, other) = now, then
    if tensor.shape != other.shape:
        yield f"{name}: shape {list(tensor.shape)}, saved {saved} has {list(other.shape)}"
    roles = ["trained" if owner else "frozen or a buffer" for owner in (group, other_group)]
    if roles[0] != roles[1]:
        yield f"{name}: {roles[0]} in this run, but {roles[1]} in the saved state"
    elif group != other_group and not allowed.allows_change("optimizer.groups"):
        yield f"{name}: in group {group}, saved in group {other_group} (--allow-change optimizer.groups)"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
