"""Weights of a saved state as one safetensors file, for programs that know nothing of this one."""

from pathlib import Path

from torch import Tensor

from aqtopo.checkpoint.files import check_files, sync, write_tensors
from aqtopo.checkpoint.inspection import SavedState, opened
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.shards import MASTER
from aqtopo.checkpoint.tags import STATE_FILE, UNFINISHED, read_state, val_loss_in
from aqtopo.checkpoint.weights import WEIGHTS_FILE, load_weights


def export(path: Path, out: Path) -> dict[str, str]:
    """Write the fp32 weights of a saved state, after its files have been checked.

    Trained parameters come from the fp32 masters, whatever precision the run computes in; frozen ones and
    buffers from the module. A tied parameter is there under each of its names.

    Args:
        path: a tag, a universal checkpoint or a run, of which the last tag is taken.
        out: the file to make.

    Returns:
        The file's metadata: tag, step, epoch, val_loss and config_digest, as text.

    Raises:
        ValueError: there is no state, or `out` exists or has no folder.
        RefusedError: the state's files are not those that were saved.
    """
    if out.exists():
        raise ValueError(f"{out} exists, and nothing is written over. Name another file.")
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: there is no folder {out.parent}. Make it first.")
    aside = out.with_name(out.name + UNFINISHED)
    with opened(path) as (state,):
        check_files(state.folder, state.manifest.files, ALONE)
        metadata = _metadata(state)
        write_tensors(aside, _weights(state), metadata)
    sync(aside)
    aside.rename(out)
    sync(out.parent)
    return metadata


def _weights(state: SavedState) -> dict[str, Tensor]:
    """Every tensor of the module by name, floating point in fp32."""
    weights = load_weights(state.folder / WEIGHTS_FILE)
    weights = {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
    for name in state.manifest.parameters:
        weights[name] = state.tensors.tensor(name, MASTER)
    for alias, name in state.manifest.tied.items():
        weights[alias] = weights[name].clone()
    return weights


def _metadata(state: SavedState) -> dict[str, str]:
    run = state.manifest.run
    saved = read_state(state.folder / STATE_FILE) if STATE_FILE in state.manifest.files else None
    facts = {
        "tag": state.manifest.tag,
        "step": run.position.step,
        "epoch": run.position.epoch,
        "val_loss": saved.val_loss if saved else val_loss_in(state.manifest.tag),
        "config_digest": run.config_digest,
    }
    return {key: "none" if value is None else str(value) for key, value in facts.items()}
