"""Manifest of a saved state: everything except tensors, and the records of its files."""

import importlib.metadata
import subprocess
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aqtopo.checkpoint.files import FileName, FileRecord, append_checksum, remove_checksum, write_durably
from aqtopo.config.strict import NonNegative, Positive
from aqtopo.refusal import RefusedError

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
SCHEMA_VERSION = 1
REPORTED_PACKAGES = ("aqtopo", "torch", "deepspeed", "triton", "numpy", "pydantic", "xarray", "zarr")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
"""Name of a module's tensor; it is also a folder's name in the universal layout, so it has no `..` or `/`."""


class TensorInfo(_Frozen):
    """Name, shape and type (such as `float32`) of a tensor."""

    name: TensorName
    shape: tuple[NonNegative, ...]
    dtype: str

    @classmethod
    def of(cls, name: str, tensor: Any) -> Self:
        """Describe a PyTorch tensor; this module does not import PyTorch."""
        return cls(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class GroupInfo(_Frozen):
    """Optimizer group: hyperparameters of the last step, and parameters in the group's order."""

    name: str
    hyperparameters: dict[str, Any]
    next_lr: float | None
    """Learning rate of the next step; None after the last one."""
    parameters: tuple[TensorInfo, ...]

    @property
    def elements(self) -> dict[str, int]:
        """Number of elements by parameter name, in the group's order."""
        return {tensor.name: tensor.elements for tensor in self.parameters}


class NextSamples(_Frozen):
    """Samples of the next step: their number, and the SHA-256 of their times and horizons in order."""

    epoch: int
    step_in_epoch: int
    count: int
    sha256: str


class Position(_Frozen):
    """Position in the run and in the order of its data."""

    epoch: int
    step_in_epoch: int
    step: int
    next_samples: NextSamples | None
    """None if unknown, as after an import."""


class Losses(_Frozen):
    """Losses that a resumed run is compared with; None if not computed yet."""

    train: float | None
    running: float | None
    """Mean training loss of the last steps."""
    probe: float | None
    """Loss in evaluation mode on the fixed probe batch."""
    best_validation: float | None
    validations_waited: int


class RunFacts(_Frozen):
    """Facts that the run provides; the rest of a manifest comes from the engine."""

    position: Position
    losses: Losses
    next_lrs: dict[str, float]
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    config: dict[str, Any]
    config_digest: str
    data_digest: str | None
    scaling_digest: str | None = None
    """SHA-256 of what determines the model's inputs: normalisation, terrain and latitudes."""


class Manifest(_Frozen):
    """Description of a saved state."""

    schema_version: Literal[1] = Field(1, alias="schema")
    layout: Literal["sharded", "universal"]
    """One file per rank, as ZeRO saves it, or one folder per parameter."""
    tag: str
    run: RunFacts
    groups: tuple[GroupInfo, ...]
    other_tensors: tuple[TensorInfo, ...]
    """Frozen parameters and buffers, which have no moments."""
    tied: dict[TensorName, TensorName]
    """First name of each tied parameter by its other names."""
    optimizer: str
    optimizer_steps: dict[str, float]
    """The optimizer's step count by group."""
    zero_stage: int
    world_size: Positive
    global_samples: int
    skipped_steps: int
    loss_scaler: dict[str, float] | None
    """State of a dynamic loss scaler; fp16 only."""
    versions: dict[str, str | None]
    origin: str | None = None
    """Source of an imported state."""
    files: dict[FileName, FileRecord] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        groups = [group.name for group in self.groups]
        names = [tensor.name for group in self.groups for tensor in group.parameters]
        if len(set(groups)) < len(groups) or set(groups) != set(self.optimizer_steps):
            raise ValueError("groups and optimizer_steps do not have the same names, each once")
        if len(set(names)) < len(names):
            raise ValueError("a parameter is listed twice")
        return self

    @property
    def parameters(self) -> dict[str, TensorInfo]:
        """Trained parameters by name, groups in order."""
        return {tensor.name: tensor for group in self.groups for tensor in group.parameters}

    @property
    def counters(self) -> dict[str, int]:
        """The engine's counters by their names in DeepSpeed."""
        return {
            "global_steps": self.run.position.step,
            "global_samples": self.global_samples,
            "skipped_steps": self.skipped_steps,
        }

    @property
    def module_tensors(self) -> dict[str, TensorInfo]:
        """Tensors of the weights file by name: trained, tied, frozen, buffers."""
        parameters = self.parameters
        aliases = {alias: parameters[name] for alias, name in self.tied.items() if name in parameters}
        return parameters | aliases | {tensor.name: tensor for tensor in self.other_tensors}

    def step_of(self, name: str) -> float:
        """Return the optimizer's step count of a parameter."""
        (step,) = (self.optimizer_steps[group.name] for group in self.groups if name in group.elements)
        return step


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest of a folder, with a checksum: temporary file, fsync, atomic rename."""
    write_durably(folder / MANIFEST_FILE, append_checksum(manifest.model_dump_json(indent=1, by_alias=True)))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a saved state.

    Raises:
        RefusedError: it is missing, damaged or has another schema.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(remove_checksum(path.read_bytes().decode()))
    except FileNotFoundError as error:
        raise RefusedError(
            f"{folder} has no {MANIFEST_FILE}, so its files cannot be checked. Resume from another tag."
        ) from error
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path} is damaged or not of schema {SCHEMA_VERSION}: {_brief(error)}") from error
    if manifest.tag != folder.name:
        raise RefusedError(f"{path} describes {manifest.tag}, but is in {folder.name}. Move it back.")
    return manifest


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        return f"{where}: {first['msg']}"
    return str(error)


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages that a run depends on; None for packages not installed."""
    return {package: _version(package) for package in REPORTED_PACKAGES}


def source_commit() -> str | None:
    """Return the git commit of this code, with `-dirty` if files differ; None without a checkout."""
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
