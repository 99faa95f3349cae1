"""Export of a saved state's weights as one safetensors file, for other programs."""

from pathlib import Path

from torch import Tensor

from aqtopo.checkpoint.files import check_files, sync, write_tensors
from aqtopo.checkpoint.inspection import SavedState, opened
from aqtopo.checkpoint.manifest import WEIGHTS_FILE
from aqtopo.checkpoint.ranks import SINGLE_RANK
from aqtopo.checkpoint.shards import MASTER
from aqtopo.checkpoint.tags import STATE_FILE, UNFINISHED, read_tag, val_loss_in
from aqtopo.checkpoint.weights import load_weights


def export(path: Path, out: Path) -> dict[str, str]:
    """Check the files of a saved state and write its fp32 weights.

    Trained parameters come from the fp32 masters, in every precision; frozen parameters and buffers come
    from the module. A tied parameter is written under each of its names.

    Args:
        path: a tag, a universal checkpoint or a run (its last tag).
        out: the file to create.

    Returns:
        Metadata of the file: tag, step, epoch, val_loss and config_digest, as text.

    Raises:
        ValueError: there is no saved state, or `out` exists or has no folder.
        RefusedError: the state's files differ from the saved ones.
    """
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten. Name another file.")
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: there is no folder {out.parent}. Create it first.")
    temporary = out.with_name(out.name + UNFINISHED)
    with opened(path) as (state,):
        check_files(state.folder, state.manifest.files, SINGLE_RANK)
        metadata = _metadata(state)
        write_tensors(temporary, _weights(state), metadata)
    sync(temporary)
    temporary.rename(out)
    sync(out.parent)
    return metadata


def _weights(state: SavedState) -> dict[str, Tensor]:
    """Return every tensor of the module by name, floating-point tensors in fp32."""
    weights = load_weights(state.folder / WEIGHTS_FILE)
    weights = {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
    for name in state.manifest.parameters:
        weights[name] = state.tensors.tensor(name, MASTER)
    for alias, name in state.manifest.tied.items():
        weights[alias] = weights[name].clone()
    return weights


def _metadata(state: SavedState) -> dict[str, str]:
    run = state.manifest.run
    saved = read_tag(state.folder / STATE_FILE) if STATE_FILE in state.manifest.files else None
    facts = {
        "tag": state.manifest.tag,
        "step": run.position.step,
        "epoch": run.position.epoch,
        "val_loss": saved.val_loss if saved else val_loss_in(state.manifest.tag),
        "config_digest": run.config_digest,
    }
    return {key: "none" if value is None else str(value) for key, value in facts.items()}
