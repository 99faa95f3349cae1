"""Universal layout: a saved state by parameter name, from which any number of ranks can resume.

    <tag>.universal/latest_universal                      the tag
    <tag>.universal/<tag>/manifest.json, weights.safetensors
    <tag>.universal/<tag>/mp_rank_00_model_states.pt      counters
    <tag>.universal/<tag>/zero/optimizer_state.pt         one entry per group, in order
    <tag>.universal/<tag>/zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt

It is DeepSpeed's own layout, and DeepSpeed can load it. DeepSpeed's converter is not used: it silently
drops state if a shard or a glob fails, and it unpickles arbitrary globals.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from aqtopo.checkpoint.files import (
    FileRecord,
    check_files,
    exclusive_lock_on_all_ranks,
    load_torch,
    refused_contents,
    save_torch,
    sync,
    sync_and_hash,
)
from aqtopo.checkpoint.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    read_manifest,
    write_manifest,
)
from aqtopo.checkpoint.shards import (
    KINDS,
    MODEL_STATES,
    NamedTensors,
    ShardedState,
    check_counters,
    check_weights,
    same_bits,
)
from aqtopo.checkpoint.tags import UNIVERSAL, remove_folder
from aqtopo.distributed.process_group import (
    RankGroup,
    gather_mappings,
    refusals_on_all_ranks,
    shard,
    shard_by_size,
)
from aqtopo.refusal import RefusedError
from aqtopo.safe_files import remove, temporary_path

LATEST = "latest_universal"
_LONGEST_NAME = 4096  # bytes, and more than a file system allows
ZERO = "zero"
OPTIMIZER_STATE = f"{ZERO}/optimizer_state.pt"
STEP = "step"

CONVERSION_TIMEOUT_S = 300.0
"""Longest wait for another run that converts the same state; its result is then used."""


def universal_folder(tag_folder: Path) -> Path:
    """Return the inner folder of a saved state's universal form, `<tag>.universal/<tag>` beside the tag."""
    return tag_folder.with_name(tag_folder.name + UNIVERSAL) / tag_folder.name


def folder_in(outer: Path) -> Path:
    """Return the inner folder of a universal checkpoint, which `latest_universal` names.

    Raises:
        RefusedError: `latest_universal` is no file or names no folder beside it.
    """
    latest = outer / LATEST
    if not latest.is_file():  # reading a pipe or a device may never end
        raise RefusedError(f"{latest} is missing or no plain file. Name the folder beside it.")
    with latest.open("rb") as file:
        text = file.read(_LONGEST_NAME).decode(errors="replace")
    folders = [path for path in sorted(outer.iterdir()) if path.is_dir()]
    for folder in folders:
        if text == f"{folder.name}\n":
            return folder
    found = " or ".join(str(folder) for folder in folders) or "none"
    raise RefusedError(f"{outer / LATEST} names {text!r}; the folders beside it: {found}. Name that folder.")


def tensor_file(name: str, kind: str) -> str:
    """Return the path of a parameter's file within the inner folder."""
    return f"{ZERO}/{name}/{kind}.pt"


class UniversalState:
    """A saved state in the universal layout, from its inner folder; tensors are memory-mapped.

    Raises:
        RefusedError: the manifest cannot be read or describes another layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        if self.manifest.layout != "universal":
            raise RefusedError(f"{folder} holds a {self.manifest.layout} state, not a universal one.")

    def check(self, ranks: RankGroup) -> None:
        """Compare the counters and step counts with the manifest; the ranks share the parameters.

        Raises:
            RefusedError: a value differs, or a file cannot be loaded.
        """
        manifest = self.manifest
        check_counters(self.folder, manifest)
        with refused_contents(self.folder / OPTIMIZER_STATE):
            groups = len(load_torch(self.folder / OPTIMIZER_STATE)["param_groups"])
        if groups != len(manifest.groups):
            raise RefusedError(
                f"{self.folder / OPTIMIZER_STATE} has {groups} groups, but the manifest has "
                f"{len(manifest.groups)}."
            )
        for name in shard(list(manifest.parameters), ranks):
            path, expected = self.folder / tensor_file(name, STEP), manifest.step_of(name)
            with refused_contents(path):
                found = float(load_torch(path))
            if found != expected:
                raise RefusedError(f"{path} holds step {found:g}, but the manifest says {expected:g}.")

    def tensor(self, name: str, kind: str) -> Tensor:
        """Return the whole fp32 tensor of a parameter: its weight or a moment.

        Raises:
            RefusedError: the file cannot be read, or its tensor has another shape or type.
        """
        path = self.folder / tensor_file(name, kind)
        data = load_torch(path)
        found = data.get("param") if isinstance(data, dict) else None
        expected = self.manifest.parameters[name].shape
        if not isinstance(found, Tensor) or tuple(found.shape) != expected or found.dtype != torch.float32:
            content = (
                f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise RefusedError(f"{path} holds {content}, but the manifest says {expected} torch.float32.")
        return found

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        """Return consecutive elements of a parameter's flattened fp32 weight or moment; reads only those.

        Raises:
            RefusedError: as `tensor`.
        """
        return self.tensor(name, kind).flatten()[place]


SavedState = ShardedState | UniversalState
"""A saved state of either layout."""


def open_universal(source: Path, ranks: RankGroup) -> UniversalState:
    """Open the universal form of a saved state after checking all files; convert if it is missing or damaged.

    Raises:
        RefusedError: on all ranks: the state's own files are damaged or contradict its manifest.
        BusyError: on all ranks: another run is still converting the state.
    """
    manifest = read_manifest(source)
    check_files(source, manifest.files, ranks)
    if manifest.layout == "universal":
        return _open_checked(source, ranks)
    target = universal_folder(source)
    if _is_usable(target, source, manifest, ranks):
        return _open_checked(target, ranks)
    busy = f"{source} is being converted"
    remedy = "Wait until the other run has resumed, and try again."
    with exclusive_lock_on_all_ranks(source / MANIFEST_FILE, ranks, busy, remedy, CONVERSION_TIMEOUT_S):
        if not _is_usable(target, source, manifest, ranks):  # the other run may have converted it
            convert(source, target, ranks)
    return UniversalState(target)


def _is_usable(target: Path, source: Path, manifest: Manifest, ranks: RankGroup) -> bool:
    """Return True if the universal form exists and is undamaged; warn if it is damaged."""
    if ranks.gather_texts(str(target.parent.exists()))[0] != str(True):
        return False
    try:
        with refusals_on_all_ranks(ranks, f"{target} cannot be used"):
            found = read_manifest(target)
            if (found.layout, found.run, found.groups) != ("universal", manifest.run, manifest.groups):
                raise RefusedError(f"{target} is the universal form of another state")
        check_files(target, found.files, ranks)
    except RefusedError as refusal:
        if ranks.rank == 0:
            warnings.warn(f"{refusal} Converting again from {source}, which is undamaged.", stacklevel=3)
        return False
    return True


def _open_checked(folder: Path, ranks: RankGroup) -> UniversalState:
    """Open a universal state with correct hashes and compare its counters and steps with its manifest."""
    state = UniversalState(folder)
    with refusals_on_all_ranks(ranks, f"{folder} cannot be used"):
        state.check(ranks)
    return state


def convert(source: Path, target: Path, ranks: RankGroup) -> None:
    """Convert a sharded tag to a universal inner folder, which is replaced; the caller has checked its files.

    Raises:
        RefusedError: on all ranks: a shard is damaged, or a written file differs when it is read back.
    """
    manifest = read_manifest(source)
    with refusals_on_all_ranks(ranks, f"{source} cannot be converted"):
        shards = ShardedState(source, manifest)
        shards.check(ranks)
        if ranks.rank == 0:
            check_weights(source, manifest)
    write_universal(manifest, shards, lambda path: _link_weights(source, manifest, path), target, ranks)


def write_universal(
    manifest: Manifest,
    state: NamedTensors,
    write_weights: Callable[[Path], FileRecord],
    target: Path,
    ranks: RankGroup,
) -> None:
    """Write a state in the universal layout into a temporary folder; commit by atomic rename.

    `target` is the inner folder. The manifest's files and layout are replaced. `write_weights` writes the
    module's weights to a path and returns the file's record. Each rank writes its shard of the tensors.

    Raises:
        RefusedError: on all ranks: a tensor cannot be read, or differs when it is read back.
    """
    path_of_rank_0 = ranks.gather_texts(str(temporary_path(target.parent)))[0]
    temporary = Path(path_of_rank_0)
    try:
        _write_folder(manifest, state, write_weights, temporary / target.name, ranks)
        if ranks.rank == 0:
            _commit(temporary, target.parent)
    finally:
        if ranks.rank == 0:
            remove(temporary)
    ranks.barrier()


def _write_folder(
    manifest: Manifest,
    state: NamedTensors,
    write_weights: Callable[[Path], FileRecord],
    folder: Path,
    ranks: RankGroup,
) -> None:
    """Write the inner folder of a universal checkpoint; arguments and errors as `write_universal`."""
    if ranks.rank == 0:
        for name in manifest.parameters:
            (folder / ZERO / name).mkdir(parents=True)
    ranks.barrier()
    written = []
    with refusals_on_all_ranks(ranks, f"{folder} cannot be written"):
        for name, kind in assigned_files(manifest, ranks):
            written.append(tensor_file(name, kind))
            _write_file(manifest, state, name, kind, folder / written[-1])
        if ranks.rank == 0:
            written += _write_common(manifest, folder)
    own = {name: sync_and_hash(folder / name) for name in written}
    found = gather_mappings({name: (record.size, record.sha256) for name, record in own.items()}, ranks)
    if ranks.rank == 0:
        records = {name: FileRecord(size, tuple(hashes)) for name, (size, hashes) in found.items()}
        records[WEIGHTS_FILE] = write_weights(folder / WEIGHTS_FILE)
        changes = {"layout": "universal", "files": dict(sorted(records.items()))}
        write_manifest(manifest.model_copy(update=changes), folder)


def assigned_files(manifest: Manifest, ranks: RankGroup) -> list[tuple[str, str]]:
    """Return parameter and kind of the files that this rank writes; sizes are balanced among ranks."""
    files = [(name, kind) for name in manifest.parameters for kind in (*KINDS, STEP)]
    sizes = [1 if kind == STEP else manifest.parameters[name].elements for name, kind in files]
    return shard_by_size(files, sizes, ranks)


def _write_file(manifest: Manifest, state: NamedTensors, name: str, kind: str, path: Path) -> None:
    """Write one tensor or step count; read a tensor back and compare."""
    if kind == STEP:
        save_torch(torch.tensor(manifest.step_of(name), dtype=torch.float32), path)
        return
    tensor = state.tensor(name, kind)
    save_torch({"param": tensor}, path)
    if not same_bits(load_torch(path)["param"], tensor):
        raise RefusedError(f"{path}: the tensor read back differs from the tensor written.")


def _write_common(manifest: Manifest, folder: Path) -> list[str]:
    """Write the files that DeepSpeed needs besides the tensors; return their names.

    Groups contain no hyperparameters, and clipping and the loss scaler are left out: DeepSpeed would let them
    override the run's configuration.
    """
    from deepspeed import __version__

    save_torch(
        {"param_groups": [{} for _ in manifest.groups], "ds_version": __version__}, folder / OPTIMIZER_STATE
    )
    sizes = {"dp_world_size": manifest.world_size, "mp_world_size": 1}
    save_torch(sizes | manifest.counters, folder / MODEL_STATES)
    (folder.parent / LATEST).write_text(folder.name + "\n", encoding="utf-8")
    sync(folder.parent / LATEST)
    return [OPTIMIZER_STATE, MODEL_STATES]


def _link_weights(source: Path, manifest: Manifest, target: Path) -> FileRecord:
    """Hard-link the weights, which are already checked; copy them if the file system has no hard links."""
    try:
        os.link(source / WEIGHTS_FILE, target)
    except OSError:
        shutil.copyfile(source / WEIGHTS_FILE, target)
        return sync_and_hash(target)
    return manifest.files[WEIGHTS_FILE]


def _commit(temporary: Path, final: Path) -> None:
    """Flush all folders and rename; replace an existing universal form."""
    for path in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
        sync(path)
    if final.exists():
        remove_folder(final)
    temporary.replace(final)
    sync(final.parent)
