"""Configuration and weights of a trained run, read without pickle and DeepSpeed."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from aqtopo.config import RunConfig, load_config
from aqtopo.data.statistics import normalization_for
from aqtopo.data.store import Store

CONFIG_FILE = "config.json"


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file by name.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}. Choose another --tag.") from error


def read_run_config(run_dir: Path) -> RunConfig:
    """Read the configuration that a run was trained with.

    Raises:
        ValueError: `run_dir` is not a run directory.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise ValueError(
            f"{run_dir} is not a run directory: it has no {CONFIG_FILE}. "
            "Name the directory that `aqtopo train` wrote (training.run_dir)."
        )
    return load_config(run_dir / CONFIG_FILE)


def scaling_digest(config: RunConfig, store: Store) -> str:
    """Return the SHA-256 of what determines the model's inputs: normalisation, terrain, latitudes.

    Longitudes are included only where something is computed from them: distances of the local bias, forcings.
    """
    normalization = normalization_for(config, store)
    digest = hashlib.sha256()
    for names in (config.data.variables, config.data.targets):
        digest.update(normalization.means(names).tobytes() + normalization.stds(names).tobytes())
    digest.update(store.static["elevation"].tobytes() + store.lat.tobytes())
    if config.model.local_bias or config.data.forcings:
        digest.update(store.lon.tobytes())
    return digest.hexdigest()
