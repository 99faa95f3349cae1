"""Inspection of saved states without a resume: contents, integrity, and differences between two states."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aqtopo.checkpoint.files import check_files, load_weights
from aqtopo.checkpoint.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest, read_manifest
from aqtopo.checkpoint.shards import KINDS, MASTER, ShardedState, check_weights, same_bits
from aqtopo.checkpoint.tags import CHECKPOINTS, STATE_FILE, last_tag, read_lock
from aqtopo.checkpoint.universal import LATEST, SavedState, UniversalState, folder_in
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.refusal import raise_problems


@dataclass(frozen=True)
class TensorRow:
    """Group, shape, and norms of weight and moments of one parameter."""

    group: str
    name: str
    shape: tuple[int, ...]
    norms: dict[str, float]


def find_state(path: Path) -> Path:
    """Return the folder with the manifest of a tag, a universal checkpoint or a run (its last tag).

    Raises:
        ValueError: the path holds no saved state.
    """
    if (path / LATEST).is_file():
        return folder_in(path)
    if (path / CHECKPOINTS).is_dir() and (tag := last_tag(path)) is not None:
        return tag.folder(path)
    if (path / MANIFEST_FILE).is_file() or (path / STATE_FILE).is_file():
        return path
    raise ValueError(
        f"{path} holds no saved state. Name the folder of a tag (RUN/{CHECKPOINTS}/TAG), "
        "of a universal checkpoint, or of a run."
    )


@contextmanager
def opened(*paths: Path) -> Iterator[list[SavedState]]:
    """Open saved states, with read locks that keep runs from pruning them.

    Raises:
        ValueError, RefusedError: as `open_state`.
    """
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(read_lock(find_state(path)))
        yield [open_state(path) for path in paths]


def open_state(path: Path) -> SavedState:
    """Open a saved state for reading; its files are not checked yet.

    Raises:
        ValueError: the path holds no saved state.
        RefusedError: the manifest is damaged, or lists other shards than those of its ranks.
    """
    folder = find_state(path)
    manifest = read_manifest(folder)
    return UniversalState(folder) if manifest.layout == "universal" else ShardedState(folder, manifest)


def inspect_state(state: SavedState) -> Iterator[TensorRow]:
    """Yield every trained parameter with its norms, groups in order."""
    for group in state.manifest.groups:
        for info in group.parameters:
            norms = {kind: float(state.tensor(info.name, kind).double().norm()) for kind in KINDS}
            yield TensorRow(group.name, info.name, info.shape, norms)


def verify_state(state: SavedState) -> int:
    """Check all files, all tensors (present, finite), and the weights against the fp32 masters.

    Returns:
        Number of tensors checked.

    Raises:
        RefusedError: it names every wrong file or tensor.
    """
    manifest = state.manifest
    check_files(state.folder, manifest.files, SINGLE_RANK)
    listed = {path.relative_to(state.folder).as_posix() for path in state.folder.rglob("*") if path.is_file()}
    extra = listed - manifest.files.keys() - {MANIFEST_FILE}
    problems = [f"{name}: not in the manifest" for name in sorted(extra)]
    state.check(SINGLE_RANK)
    check_weights(state.folder, manifest)
    weights = load_weights(state.folder / WEIGHTS_FILE)
    count = len(weights)
    for name, info in manifest.parameters.items():
        for kind in KINDS:
            tensor = state.tensor(name, kind)
            count += 1
            problems += [f"{name} {kind}: {problem}" for problem in _value_problems(tensor, kind)]
        if manifest.run.precision == "fp32":
            trained = weights[name].reshape(info.shape)
            if not same_bits(trained, state.tensor(name, MASTER)):
                problems.append(f"{name}: differs from the weight in {WEIGHTS_FILE}")
    raise_problems(f"{state.folder} is damaged", problems, "Resume from another tag.")
    return count


def _value_problems(tensor: Tensor, kind: str) -> Iterator[str]:
    if not bool(torch.isfinite(tensor).all()):
        yield f"{int((~torch.isfinite(tensor)).sum())} values are not finite"
    if kind == KINDS[2] and bool((tensor < 0).any()):
        yield "a second moment is negative"


def diff_states(one: SavedState, other: SavedState) -> Iterator[tuple[str, str]]:
    """Yield the differences between two saved states: name and description."""
    ours, theirs = one.manifest.parameters, other.manifest.parameters
    for name in sorted(ours.keys() ^ theirs.keys()):
        yield name, f"only in {(one if name in ours else other).folder.name}"
    for group in one.manifest.groups:
        for name in group.elements:
            if name in theirs:
                yield from _tensor_differences(name, one, other)
    yield from _group_differences(one.manifest, other.manifest)
    steps = [state.manifest.run.position.step for state in (one, other)]
    if steps[0] != steps[1]:
        yield "step", f"{steps[0]} and {steps[1]}"


def _group_differences(one: Manifest, other: Manifest) -> Iterator[tuple[str, str]]:
    pairs = {group.name: group.hyperparameters for group in other.groups}
    for group in one.groups:
        for key, value in group.hyperparameters.items():
            theirs = pairs.get(group.name, {}).get(key)
            if theirs != value:
                yield f"group {group.name}", f"{key}: {value} and {theirs}"


def _tensor_differences(name: str, one: SavedState, other: SavedState) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        ours, theirs = one.tensor(name, kind), other.tensor(name, kind)
        if ours.shape != theirs.shape:
            yield f"{name} {kind}", f"shapes {list(ours.shape)} and {list(theirs.shape)}"
        elif not same_bits(ours, theirs):
            largest = float((ours.double() - theirs.double()).abs().max())
            count = int((ours != theirs).sum())
            yield f"{name} {kind}", f"{count} of {ours.numel()} differ, by up to {largest:.3g}"
