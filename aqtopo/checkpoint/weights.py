"""Trained runs for evaluation and forecasts; reads safetensors only, no pickle and no DeepSpeed."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from aqtopo.checkpoint.files import check_files
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, RunFacts, read_manifest
from aqtopo.checkpoint.ranks import SINGLE_RANK
from aqtopo.checkpoint.tags import Tag, find_tag, read_lock
from aqtopo.config import RunConfig, load_config
from aqtopo.data.statistics import Normalization, normalization_for
from aqtopo.data.store import Store, open_store
from aqtopo.model import AirQualityViT, Terrain, build_model

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to forecast.

    Attributes:
        run_dir: its run directory.
        config: its configuration.
        tag: the saved state that was loaded.
        model: in evaluation mode, on the CPU.
        store: the opened data.
        normalization: maps fields to model inputs, and back.
    """

    run_dir: Path
    config: RunConfig
    tag: Tag
    model: AirQualityViT
    store: Store
    normalization: Normalization


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

    Longitudes are included only with a local bias, which computes distances from them.
    """
    normalization = normalization_for(config, store)
    digest = hashlib.sha256()
    for names in (config.data.variables, config.data.targets):
        digest.update(normalization.means(names).tobytes() + normalization.stds(names).tobytes())
    digest.update(store.static["elevation"].tobytes() + store.lat.tobytes())
    if config.model.local_bias:
        digest.update(store.lon.tobytes())
    return digest.hexdigest()


def _check_data(run: RunFacts, config: RunConfig, store: Store, run_dir: Path) -> None:
    """Compare the store with the training data.

    Raises:
        ValueError: normalisation or terrain differ.
    """
    if run.data_digest in (None, store.digest):
        return
    if run.scaling_digest != scaling_digest(config, store):
        raise ValueError(
            f"{config.data.store} has another normalisation or terrain than the data that {run_dir} was "
            "trained on, so its forecasts would be wrong. Restore the store of the training."
        )
    warnings.warn(
        f"{config.data.store} has changed since {run_dir} was trained; its normalisation and terrain have "
        "not. The results are for the current data",
        stacklevel=3,
    )


def load_run(run_dir: Path, tag: str = "best") -> LoadedRun:
    """Open a trained run.

    Args:
        run_dir: the run directory.
        tag: `best`, `last` or a tag's name.

    Raises:
        ValueError: there is no such run or tag, the weights do not fit the model, or the store is invalid or
            another one.
        RefusedError: the weights differ from the saved ones.
    """
    config = read_run_config(run_dir)
    found = find_tag(run_dir, tag)
    store = open_store(config.data.store, config.data.read_deadline_s)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    path = found.folder(run_dir) / WEIGHTS_FILE
    try:
        with read_lock(path.parent):
            manifest = read_manifest(path.parent)
            _check_data(manifest.run, config, store, run_dir)
            check_files(path.parent, {WEIGHTS_FILE: manifest.files[WEIGHTS_FILE]}, SINGLE_RANK)
            model.load_state_dict(load_weights(path), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model of {run_dir / CONFIG_FILE}: {error}") from error
    return LoadedRun(run_dir, config, found, model.eval(), store, normalization_for(config, store))
