"""The universal layout: a saved state by parameter name, from which any number of ranks can go on.

    <tag>.universal/latest_universal                      the tag
    <tag>.universal/<tag>/manifest.json, weights.safetensors
    <tag>.universal/<tag>/mp_rank_00_model_states.pt      counters
    <tag>.universal/<tag>/zero/optimizer_state.pt         one entry a group, in order
    <tag>.universal/<tag>/zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt

It is DeepSpeed's own layout, and DeepSpeed can load it. It is written here and not by DeepSpeed's converter,
which drops state without a word where a shard or a glob fails, and runs whatever code a file holds.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from aqtopo.checkpoint.manifest import Manifest, read_manifest
from aqtopo.checkpoint.pickles import load_data
from aqtopo.checkpoint.tags import UNIVERSAL
from aqtopo.refusal import RefusedError

LATEST = "latest_universal"
MODEL_STATES = "mp_rank_00_model_states.pt"
ZERO = "zero"
OPTIMIZER_STATE = f"{ZERO}/optimizer_state.pt"
STEP = "step"


def universal_folder(tag_folder: Path) -> Path:
    """Where the universal form of a saved state lies: a sibling, with a folder of the tag's name in it."""
    return tag_folder.with_name(tag_folder.name + UNIVERSAL) / tag_folder.name


def folder_in(outer: Path) -> Path:
    """The inner folder of a universal checkpoint, which its own file names.

    Raises:
        RefusedError: the file names no folder beside it.
    """
    text = (outer / LATEST).read_bytes().decode(errors="replace")
    folders = [path for path in sorted(outer.iterdir()) if path.is_dir()]
    for folder in folders:
        if text == f"{folder.name}\n":
            return folder
    there = " or ".join(str(folder) for folder in folders) or "none"
    raise RefusedError(f"{outer / LATEST} names {text!r}, and beside it there is {there}. Name that folder.")


def tensor_file(name: str, kind: str) -> str:
    """Path of a parameter's tensor within the universal folder."""
    return f"{ZERO}/{name}/{kind}.pt"


class UniversalState:
    """A saved state by parameter name; tensors are read from the disk only as far as they are used.

    Args:
        folder: the inner folder, with the manifest.

    Raises:
        RefusedError: the manifest cannot be read or is not of this layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        if self.manifest.layout != "universal":
            raise RefusedError(f"{folder} holds a {self.manifest.layout} state, not a universal one.")

    def check(self, names: Sequence[str]) -> None:
        """Compare counters, and the step counts of the parameters `names`, with the manifest.

        Raises:
            RefusedError: a file says something else, or holds more than data.
        """
        manifest = self.manifest
        check_counters(self.folder / MODEL_STATES, manifest)
        if len(load_data(self.folder / OPTIMIZER_STATE)["param_groups"]) != len(manifest.groups):
            raise RefusedError(f"{self.folder / OPTIMIZER_STATE} has not {len(manifest.groups)} groups.")
        for group in manifest.groups:
            for name in group.elements.keys() & set(names):
                path = self.folder / tensor_file(name, STEP)
                if float(load_data(path)) != manifest.optimizer_steps[group.name]:
                    raise RefusedError(f"{path} is not step {manifest.optimizer_steps[group.name]:g}.")

    def tensor(self, name: str, kind: str) -> Tensor:
        """The whole fp32 tensor of a parameter: its weight or a moment.

        Raises:
            RefusedError: the file cannot be read, or its tensor is of another shape or type.
        """
        path = self.folder / tensor_file(name, kind)
        data = load_data(path)
        found = data.get("param") if isinstance(data, dict) else None
        expected = self.manifest.parameters[name].shape
        if not isinstance(found, Tensor) or tuple(found.shape) != expected or found.dtype != torch.float32:
            what = (
                f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise RefusedError(f"{path} holds {what}, but the manifest says {expected} torch.float32.")
        return found

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        """Consecutive elements of a parameter's flattened fp32 weight or moment; reads only those.

        Raises:
            RefusedError: as `tensor`.
        """
        return self.tensor(name, kind).flatten()[place]


def check_counters(path: Path, manifest: Manifest) -> None:
    """Compare the counters that DeepSpeed saved with the manifest's.

    Raises:
        RefusedError: they differ, or the file holds more than data.
    """
    counters = load_data(path)
    expected = {
        "global_steps": manifest.run.position.step,
        "global_samples": manifest.global_samples,
        "skipped_steps": manifest.skipped_steps,
    }
    for name, value in expected.items():
        if counters.get(name) != value:
            raise RefusedError(f"{path}: {name} is {counters.get(name)}, but the manifest says {value}.")
