"""The manifest: everything about a saved state that is not a tensor, and what its files must be."""

import importlib.metadata
import subprocess
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aqtopo.checkpoint.files import FileRecord, seal, unseal, write_durably
from aqtopo.refusal import RefusedError

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
REPORTED_PACKAGES = ("aqtopo", "torch", "deepspeed", "triton", "numpy", "pydantic", "xarray", "zarr")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Part):
    """A tensor's name, shape and type, such as `float32`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class GroupInfo(_Part):
    """An optimizer group: hyperparameters as of the last step, and its parameters in the group's order."""

    name: str
    hyperparameters: dict[str, Any]
    next_lr: float | None
    """Learning rate of the next step; None after the last one."""
    parameters: tuple[TensorInfo, ...]

    @property
    def elements(self) -> dict[str, int]:
        """Number of elements by parameter name, in the group's order."""
        return {tensor.name: tensor.elements for tensor in self.parameters}


class NextSamples(_Part):
    """The samples of the next step: how many, and the SHA-256 of their times and horizons in order."""

    epoch: int
    step_in_epoch: int
    count: int
    sha256: str


class Position(_Part):
    """Where in the run, and in the order of its data, the state was saved."""

    epoch: int
    step_in_epoch: int
    step: int
    next_samples: NextSamples | None
    """None where it is not known, as after an import."""


class Losses(_Part):
    """Losses that a resumed run is held against; None where there is none yet."""

    train: float | None
    running: float | None
    """Mean training loss of the last steps."""
    probe: float | None
    """Loss in evaluation mode on the fixed probe batch."""
    best_validation: float | None
    validations_waited: int


class RunFacts(_Part):
    """What the run knows of itself; the rest of a manifest is read from the engine."""

    position: Position
    losses: Losses
    next_lrs: dict[str, float]
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    config: dict[str, Any]
    config_digest: str
    data_digest: str | None
    scaling_digest: str | None = None
    """Of what the model's inputs are made with: normalisation, terrain and latitudes."""


class Manifest(_Part):
    """All that is known of a saved state."""

    schema_version: Literal[1] = Field(1, alias="schema")
    layout: Literal["sharded", "universal"]
    """Per rank, as ZeRO saves it, or per parameter name."""
    tag: str
    run: RunFacts
    groups: tuple[GroupInfo, ...]
    other_tensors: tuple[TensorInfo, ...]
    """Frozen parameters and buffers: in the weights, without moments."""
    tied: dict[str, str]
    """Further names of a parameter, with the name it is trained under."""
    optimizer: str
    optimizer_steps: dict[str, float]
    """Updates made by group, as the optimizer counts them."""
    zero_stage: int
    world_size: int
    global_samples: int
    skipped_steps: int
    loss_scaler: dict[str, float] | None
    """State of a dynamic loss scaler, in fp16 only."""
    versions: dict[str, str | None]
    origin: str | None = None
    """What this state was made from, if it was converted or imported."""
    files: dict[str, FileRecord] = {}

    @property
    def parameters(self) -> dict[str, TensorInfo]:
        """The trained parameters by name, groups in order."""
        return {tensor.name: tensor for group in self.groups for tensor in group.parameters}

    @property
    def module_tensors(self) -> dict[str, TensorInfo]:
        """What the weights file holds, by name: trained, tied, frozen, buffers."""
        parameters = self.parameters
        aliases = {alias: parameters[name] for alias, name in self.tied.items() if name in parameters}
        return parameters | aliases | {tensor.name: tensor for tensor in self.other_tensors}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest of a folder, durably, with a last line that seals it."""
    write_durably(folder / MANIFEST_FILE, seal(manifest.model_dump_json(indent=1, by_alias=True)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved state.

    Raises:
        RefusedError: it is missing, damaged or of another version.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(unseal(path.read_bytes().decode()))
    except FileNotFoundError as error:
        raise RefusedError(
            f"{folder} has no {MANIFEST_FILE}, so nothing vouches for what is in it. Resume from another tag."
        ) from error
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path} is damaged or not of schema {SCHEMA_VERSION}: {_brief(error)}") from error
    if manifest.tag != folder.name:
        raise RefusedError(f"{path} is that of {manifest.tag}, but lies in {folder.name}. Put it back.")
    return manifest


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        return f"{where}: {first['msg']}"
    return str(error)


def package_versions() -> dict[str, str | None]:
    """Installed versions of what a run depends on; None where a package is absent."""
    return {package: _version(package) for package in REPORTED_PACKAGES}


def source_commit() -> str | None:
    """The git commit that this code runs from, `-dirty` where files differ; None without a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
