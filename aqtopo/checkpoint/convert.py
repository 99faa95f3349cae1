"""Writing the universal layout, from ZeRO's shards or from anything else that knows tensors by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from aqtopo.checkpoint.files import FileRecord, check_files, describe_file, sync
from aqtopo.checkpoint.manifest import Manifest, read_manifest, write_manifest
from aqtopo.checkpoint.pickles import load_data, save_data
from aqtopo.checkpoint.ranks import Ranks, gather_mappings, refuse_together, share
from aqtopo.checkpoint.shards import KINDS, ShardedState
from aqtopo.checkpoint.tags import UNFINISHED
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


class NamedTensors(Protocol):
    """A state whose tensors are known by name."""

    def tensor(self, name: str, kind: str) -> Tensor:
        """The whole fp32 tensor of a parameter: its weight or a moment."""


def open_universal(source: Path, ranks: Ranks) -> UniversalState:
    """The universal form of a saved state, made if it is not there yet; all files are checked.

    Args:
        source: the folder of a tag, or of a universal state.
        ranks: who takes part.

    Raises:
        RefusedError: on all ranks: files are damaged, or a universal form is that of another state.
    """
    manifest = read_manifest(source)
    problems: list[str] = []
    target = source if manifest.layout == "universal" else universal_folder(source)
    there = target.parent.exists()
    check_files(source, manifest.files, ranks)
    if not there:
        convert(source, target, ranks)
        return UniversalState(target)
    state = UniversalState(target)
    if target != source:
        check_files(target, state.manifest.files, ranks)
        if (state.manifest.run, state.manifest.groups) != (manifest.run, manifest.groups):
            problems = [f"{target.parent} is not the universal form of {source}. Remove it."]
    try:
        state.check(share(list(manifest.parameters), ranks))
    except RefusedError as error:
        problems.append(str(error))
    refuse_together(ranks, f"{target} cannot be used", problems)
    return state


def convert(source: Path, target: Path, ranks: Ranks) -> None:
    """Turn a sharded tag into the universal layout, all ranks together.

    Args:
        source: the tag's folder, its files already checked.
        target: the inner folder to make; its parent must not exist.
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
    write_universal(manifest, shards, lambda path: _link(source / WEIGHTS_FILE, path), target, ranks)


def write_universal(
    manifest: Manifest,
    state: NamedTensors,
    write_weights: Callable[[Path], None],
    target: Path,
    ranks: Ranks,
) -> None:
    """Write a state in the universal layout: aside, read back and compared, synced, then renamed.

    Args:
        manifest: of the state; its files and layout are replaced.
        state: the tensors.
        write_weights: puts the module's weights into the file it is given.
        target: the inner folder to make.
        ranks: who takes part; each writes its share of the parameters.

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
    problems, written = [], []
    try:
        for name in _own_parameters(manifest, ranks):
            written += _write_parameter(manifest, state, name, folder)
    except RefusedError as error:
        problems = [str(error)]
    if ranks.rank == 0:
        written += _write_common(manifest, folder)
        write_weights(folder / WEIGHTS_FILE)
        written.append(WEIGHTS_FILE)
    refuse_together(ranks, f"{target} cannot be written", problems)
    records = gather_mappings({name: _described(folder / name) for name in written}, ranks)
    if ranks.rank == 0:
        files = {name: FileRecord(size, tuple(hashes)) for name, (size, hashes) in sorted(records.items())}
        write_manifest(manifest.model_copy(update={"layout": "universal", "files": files}), folder)
        sync(aside)
        aside.replace(target.parent)
        sync(target.parent.parent)
    ranks.barrier()


def _own_parameters(manifest: Manifest, ranks: Ranks) -> list[str]:
    """This rank's parameters: dealt out like cards, the largest first."""
    sizes = {name: tensor.elements for name, tensor in manifest.parameters.items()}
    return sorted(sizes, key=lambda name: (-sizes[name], name))[ranks.rank :: ranks.size]


def _write_parameter(manifest: Manifest, state: NamedTensors, name: str, folder: Path) -> list[str]:
    """Write what is kept for one parameter, and read it back."""
    files = [tensor_file(name, kind) for kind in KINDS]
    for kind, file in zip(KINDS, files, strict=True):
        tensor = state.tensor(name, kind)
        save_data({"param": tensor}, folder / file)
        again = load_data(folder / file)["param"]
        if not same_bits(again, tensor):
            raise RefusedError(f"{folder / file}: what was written does not read back the same.")
    step = next(manifest.optimizer_steps[g.name] for g in manifest.groups if name in g.elements)
    save_data(torch.tensor(step, dtype=torch.float32), folder / tensor_file(name, STEP))
    return [*files, tensor_file(name, STEP)]


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
    return [OPTIMIZER_STATE, MODEL_STATES]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits: NaN equals itself, and 0 is not -0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer)


def _described(path: Path) -> tuple[int, tuple[str, ...]]:
    sync(path)
    record = describe_file(path)
    return record.size, record.sha256


def _link(source: Path, target: Path) -> None:
    """Give a file a second name where the file system can, else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
