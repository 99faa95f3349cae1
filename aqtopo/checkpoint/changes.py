"""What a resumed run may do differently from the run that was saved: nothing, unless it is named."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from aqtopo.checkpoint.manifest import GroupInfo, Manifest, TensorInfo
from aqtopo.refusal import refuse

FREE = (
    "name",
    "description",
    "data.store",
    "data.workers",
    "data.worker_start",
    "data.prefetch",
    "data.read_deadline_s",
    "data.stage",
    "training.run_dir",
    "training.log_every",
    "training.sanity_micro_batches",
    "checkpoint.*",
    "deepspeed.steps_per_print",
    "deepspeed.log_level",
    "deepspeed.disable_python_gc",
    "deepspeed.dump_state",
    "deepspeed.wall_clock_breakdown",
    "deepspeed.memory_breakdown",
    "deepspeed.tensorboard.*",
    "deepspeed.csv_monitor.*",
    "deepspeed.wandb.*",
    "deepspeed.comms_logger.*",
    "deepspeed.flops_profiler.*",
    "deepspeed.timers.*",
)
"""Settings without influence on what is learnt: where things lie, how fast they are read, what is printed."""


@dataclass(frozen=True)
class Allowed:
    """Differences that were asked for.

    Attributes:
        changes: glob patterns over configuration paths, such as `optimizer.base_lr`.
        missing: parameters of the run that the saved state need not have.
        unexpected: saved tensors that the run need not have.
        renames: new name by saved name.
    """

    changes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)

    def change(self, path: str) -> bool:
        """Whether the setting at `path` may differ; allowing a section allows what is in it."""
        return any(fnmatchcase(path, pattern) or path.startswith(f"{pattern}.") for pattern in self.changes)

    def within(self, section: str) -> bool:
        """Whether anything may differ in a section, or in a setting."""
        return self.change(section) or any(pattern.startswith(f"{section}.") for pattern in self.changes)

    def drops(self, name: str) -> bool:
        """Whether the run need not have the saved tensor `name`."""
        return _listed(name, self.unexpected)


def parse_renames(texts: Iterable[str]) -> dict[str, str]:
    """Read `OLD=NEW` pairs.

    Raises:
        ValueError: a text is not of this form.
    """
    for text in texts:
        if text.count("=") != 1 or not all(text.split("=")):
            raise ValueError(f"--rename {text}: write OLD=NEW, the saved name and the one it has now.")
    return dict(text.split("=") for text in texts)


@dataclass(frozen=True)
class Change:
    """A setting that differs."""

    path: str
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: saved {self.saved!r}, now {self.now!r}"


def config_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Settings that differ and matter."""
    old, new = dict(_leaves(saved)), dict(_leaves(now))
    changes = [Change(path, old.get(path), new.get(path)) for path in sorted(old.keys() | new.keys())]
    return [
        change
        for change in changes
        if change.saved != change.now and not any(fnmatchcase(change.path, free) for free in FREE)
    ]


def check_changes(changes: list[Change], allowed: Allowed) -> None:
    """Refuse settings that differ without having been allowed.

    Raises:
        RefusedError: it lists them, with what to type.
    """
    refused = [change for change in changes if not allowed.change(change.path)]
    typed = " ".join(f"--allow-change {change.path}" for change in refused[:4])
    refuse(
        "the configuration differs from the saved run's",
        [str(change) for change in refused],
        f"Put it back, or say that it is meant: {typed}",
    )


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted path; entries of a list of named things go by their names."""
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
    """Find the saved tensor of every tensor of the run, by name.

    Args:
        manifest: the saved state's.
        groups: the run's optimizer groups.
        others: the run's frozen parameters and buffers.
        allowed: renames, and what may lack a partner.

    Returns:
        Saved name by the run's name; None for what starts fresh.

    Raises:
        RefusedError: a tensor lacks its partner, or partners differ in shape, group or kind.
    """
    renamed = {new: old for old, new in allowed.renames.items()}
    now = {tensor.name: (group.name, tensor) for group in groups for tensor in group.parameters}
    now |= {tensor.name: ("", tensor) for tensor in others}
    then = {tensor.name: (group.name, tensor) for group in manifest.groups for tensor in group.parameters}
    then |= {tensor.name: ("", tensor) for tensor in manifest.other_tensors}
    names: dict[str, str | None] = {}
    problems = [
        f"--rename {old}={new}: {what}"
        for old, new in allowed.renames.items()
        for what in _idle_rename(old, new, then, now)
    ]
    for name, (group, tensor) in now.items():
        saved = renamed.get(name, name)
        if saved not in then:
            names[name] = None
            if not _listed(name, allowed.missing):
                problems.append(
                    f"{name} {list(tensor.shape)}: not in the saved state (--allow-missing {name})"
                )
            continue
        names[name] = saved
        problems += _disagreements(name, tensor, group, saved, then[saved][1], then[saved][0], allowed)
    used = {saved for saved in names.values() if saved is not None}
    problems += [
        f"{name} {list(tensor.shape)}: saved, but not in this run (--allow-unexpected {name})"
        for name, (_, tensor) in then.items()
        if name not in used and not allowed.drops(name)
    ]
    refuse("the saved state is not this model's", problems, "Or move a state to a new name: --rename OLD=NEW")
    return names


def _idle_rename(old: str, new: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if old not in then:
        yield f"the saved state has no {old}"
    if new not in now:
        yield f"this run has no {new}"


def _disagreements(
    name: str,
    tensor: TensorInfo,
    group: str,
    saved: str,
    other: TensorInfo,
    other_group: str,
    allowed: Allowed,
) -> Iterator[str]:
    if tensor.shape != other.shape:
        yield f"{name}: shape {list(tensor.shape)}, saved {saved} has {list(other.shape)}"
    kinds = ["trained" if owner else "frozen or a buffer" for owner in (group, other_group)]
    if kinds[0] != kinds[1]:
        yield f"{name}: {kinds[0]} in this run, but {kinds[1]} in the saved state"
    elif group != other_group and not allowed.change("optimizer.groups"):
        yield f"{name}: in group {group}, saved in group {other_group} (--allow-change optimizer.groups)"


def _listed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
