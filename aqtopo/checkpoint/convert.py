"""Writing the universal layout, from ZeRO's shards or from anything else that knows tensors by name."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from aqtopo.checkpoint.files import FileRecord, check_files, settle, sync
from aqtopo.checkpoint.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from aqtopo.checkpoint.pickles import save_data
from aqtopo.checkpoint.ranks import Ranks, gather_mappings, refuse_together, share, share_by_size
from aqtopo.checkpoint.retention import discard
from aqtopo.checkpoint.shards import KINDS, ShardedState
from aqtopo.checkpoint.tags import UNFINISHED
from aqtopo.checkpoint.tensor_files import Elements, TensorFile, blocks_of, create, fill, joined
from aqtopo.checkpoint.universal import (
    LATEST,
    MODEL_STATES,
    OPTIMIZER_STATE,
    STEP,
    ZERO,
    UniversalState,
    check_counters,
    tensor_file,
    universal_folder,
)
from aqtopo.checkpoint.weights import WEIGHTS_FILE
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.locks import alone_together

WAIT = "Wait until the other run has resumed, and try again."

PATIENCE_S = 300.0
"""How long to wait for another run that converts the same state; then its result is used."""


class NamedTensors(Elements, Protocol):
    """A state whose tensors are known by name."""

    def tensor(self, name: str, kind: str) -> Tensor:
        """The whole fp32 tensor of a parameter: its weight or a moment."""


def open_universal(source: Path, ranks: Ranks) -> UniversalState:
    """The universal form of a saved state, made if it is not there or damaged; all files are checked.

    Args:
        source: the folder of a tag, or of a universal state.
        ranks: who takes part.

    Raises:
        RefusedError: on all ranks: the state's own files are damaged, or contradict its manifest.
        BusyError: on all ranks: another run is still converting it.
    """
    manifest = read_manifest(source)
    check_files(source, manifest.files, ranks)
    if manifest.layout == "universal":
        return _checked(source, manifest, ranks)
    target = universal_folder(source)
    if _is_usable(target, source, manifest, ranks):
        return _checked(target, manifest, ranks)
    busy = f"{source} is being converted"
    with alone_together(source / MANIFEST_FILE, ranks, busy, WAIT, PATIENCE_S):
        if not _is_usable(target, source, manifest, ranks):  # whoever had to be waited for may have made it
            convert(source, target, ranks)
    return UniversalState(target)


def _is_usable(target: Path, source: Path, manifest: Manifest, ranks: Ranks) -> bool:
    """Whether the universal form is there and whole; where it is not whole, that is said aloud."""
    if ranks.gather_texts(str(target.parent.exists()))[0] != str(True):
        return False
    problems = []
    try:
        made = read_manifest(target)
        if (made.layout, made.run, made.groups) != ("universal", manifest.run, manifest.groups):
            problems = [f"{target} is that of another state"]
    except RefusedError as error:
        problems = [str(error)]
    try:
        refuse_together(ranks, f"{target} cannot be used", problems)
        check_files(target, made.files, ranks)
    except RefusedError as refusal:
        if ranks.rank == 0:
            warnings.warn(f"{refusal} It is made anew from {source}, which is whole.", stacklevel=3)
        return False
    return True


def _checked(folder: Path, manifest: Manifest, ranks: Ranks) -> UniversalState:
    """Open a universal state whose files are whole, and make sure that they say what its manifest says."""
    state, problems = UniversalState(folder), []
    try:
        state.check(share(list(manifest.parameters), ranks))
    except RefusedError as error:
        problems = [str(error)]
    refuse_together(ranks, f"{folder} cannot be used", problems)
    return state


def convert(source: Path, target: Path, ranks: Ranks) -> None:
    """Turn a sharded tag into the universal layout, all ranks together.

    Args:
        source: the tag's folder, its files already checked.
        target: the inner folder to make; what is there is replaced.
        ranks: who takes part.

    Raises:
        RefusedError: on all ranks: a shard is damaged, or what was written does not read back the same.
    """
    manifest = read_manifest(source)
    problems = []
    try:
        shards = ShardedState(source, manifest)
        shards.check_steps(ranks)
        check_counters(source / MODEL_STATES, manifest)
    except RefusedError as error:
        problems = [str(error)]
    refuse_together(ranks, f"{source} cannot be converted", problems)
    write_universal(manifest, shards, lambda path: _link_weights(source, manifest, path), target, ranks)


def write_universal(
    manifest: Manifest,
    state: Elements,
    write_weights: Callable[[Path], FileRecord],
    target: Path,
    ranks: Ranks,
) -> None:
    """Write a state in the universal layout: aside, read back and compared, synced, then renamed.

    Args:
        manifest: of the state; its files and layout are replaced.
        state: the tensors.
        write_weights: puts the module's weights into the file it is given, and says what that must be.
        target: the inner folder to make.
        ranks: who takes part; each writes its share of the blocks of all tensors' files.

    Raises:
        RefusedError: on all ranks.
    """
    aside = target.parent.with_name(target.parent.name + UNFINISHED)
    folder = aside / target.name
    if ranks.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        for name in manifest.parameters:
            (folder / ZERO / name).mkdir(parents=True)
    ranks.barrier()
    records = _write_small_files(manifest, folder, ranks)
    files = _create_tensor_files(manifest, folder, ranks)
    problems, hashes = [], {}
    try:
        blocks = blocks_of(files)
        hashes = fill(folder, state, share_by_size(blocks, [block.size for block in blocks], ranks))
    except RefusedError as error:
        problems = [str(error)]
    refuse_together(ranks, f"{target} cannot be written", problems)
    everyones = joined(json.loads(text) for text in ranks.gather_texts(json.dumps(hashes)))
    if ranks.rank == 0:
        records |= {file.name: FileRecord(file.size, everyones[file.name]) for file in files}
        records[WEIGHTS_FILE] = write_weights(folder / WEIGHTS_FILE)
        whole = {"layout": "universal", "files": dict(sorted(records.items()))}
        write_manifest(manifest.model_copy(update=whole), folder)
        for path in (aside, *(path for path in aside.rglob("*") if path.is_dir())):
            sync(path)
        if target.parent.exists():
            discard(target.parent)
        aside.replace(target.parent)
        sync(target.parent.parent)
    ranks.barrier()


def _write_small_files(manifest: Manifest, folder: Path, ranks: Ranks) -> dict[str, FileRecord]:
    """Write the step counts, each rank its share of the parameters, and on rank 0 what DeepSpeed wants."""
    written = []
    for name in share(list(manifest.parameters), ranks):
        step = next(manifest.optimizer_steps[g.name] for g in manifest.groups if name in g.elements)
        written.append(tensor_file(name, STEP))
        save_data(torch.tensor(step, dtype=torch.float32), folder / written[-1])
    if ranks.rank == 0:
        written += _write_common(manifest, folder)
    own = {name: settle(folder / name) for name in written}
    found = gather_mappings({name: (record.size, record.sha256) for name, record in own.items()}, ranks)
    return {name: FileRecord(size, tuple(hashes)) for name, (size, hashes) in found.items()}


def _create_tensor_files(manifest: Manifest, folder: Path, ranks: Ranks) -> list[TensorFile]:
    """Make the tensors' files, still empty, each rank its share; all of them, on every rank."""
    names = [(name, kind) for name in manifest.parameters for kind in KINDS]
    parameters = manifest.parameters
    made = {
        tensor_file(name, kind): create(folder / tensor_file(name, kind), parameters[name].shape)
        for name, kind in share(names, ranks)
    }
    places = gather_mappings(made, ranks)
    return [
        TensorFile(path, name, kind, parameters[name].elements, *places[path])
        for name, kind in names
        for path in (tensor_file(name, kind),)
    ]


def _write_common(manifest: Manifest, folder: Path) -> list[str]:
    """What DeepSpeed wants besides the tensors.

    Groups carry no hyperparameters, so that those of the run's own configuration stand; clipping and the loss
    scaler are left out for the same reason.
    """
    from deepspeed import __version__

    save_data(
        {"param_groups": [{} for _ in manifest.groups], "ds_version": __version__}, folder / OPTIMIZER_STATE
    )
    counters = {
        "dp_world_size": manifest.world_size,
        "mp_world_size": 1,
        "global_steps": manifest.run.position.step,
        "global_samples": manifest.global_samples,
        "skipped_steps": manifest.skipped_steps,
    }
    save_data(counters, folder / MODEL_STATES)
    (folder.parent / LATEST).write_text(folder.name + "\n")
    sync(folder.parent / LATEST)
    return [OPTIMIZER_STATE, MODEL_STATES]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits: NaN equals itself, and 0 is not -0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer)


def _link_weights(source: Path, manifest: Manifest, target: Path) -> FileRecord:
    """Give the weights, which are on the disk and checked, a second name; copy them where that cannot be."""
    try:
        os.link(source / WEIGHTS_FILE, target)
    except OSError:
        shutil.copyfile(source / WEIGHTS_FILE, target)
        return settle(target)
    return manifest.files[WEIGHTS_FILE]
