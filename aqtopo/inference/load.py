"""Loading a trained run for evaluation and forecasts, without pickle and without DeepSpeed."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from aqtopo.checkpoint.files import check_files
from aqtopo.checkpoint.manifest import RunFacts, read_manifest
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.retention import reading
from aqtopo.checkpoint.tags import Tag, find_tag
from aqtopo.checkpoint.weights import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_run_config, scaling_digest
from aqtopo.config import RunConfig
from aqtopo.data.statistics import Normalization, normalization_for
from aqtopo.data.store import Store, open_store
from aqtopo.model import AirQualityViT, Terrain, build_model


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to forecast.

    Attributes:
        run_dir: where it lies.
        config: its configuration.
        tag: which saved state was read.
        model: in evaluation mode, on the CPU.
        store: the opened data.
        normalization: maps fields to what the model sees, and back.
    """

    run_dir: Path
    config: RunConfig
    tag: Tag
    model: AirQualityViT
    store: Store
    normalization: Normalization


def load_run(run_dir: Path, tag: str = "best") -> LoadedRun:
    """Open a trained run.

    Args:
        run_dir: the run directory.
        tag: `best`, `last` or a tag's name.

    Raises:
        ValueError: no run, no such tag, weights that do not fit the model, or a bad or another store.
        RefusedError: the weights are not those that were saved.
    """
    config = read_run_config(run_dir)
    found = find_tag(run_dir, tag)
    store = open_store(config.data.store, config.data.read_deadline_s)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    path = found.folder(run_dir) / WEIGHTS_FILE
    try:
        with reading(path.parent):
            manifest = read_manifest(path.parent)
            _check_data(manifest.run, config, store, run_dir)
            check_files(path.parent, {WEIGHTS_FILE: manifest.files[WEIGHTS_FILE]}, ALONE)
            model.load_state_dict(load_weights(path), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model of {run_dir / CONFIG_FILE}: {error}") from error
    return LoadedRun(run_dir, config, found, model.eval(), store, normalization_for(config, store))


def _check_data(run: RunFacts, config: RunConfig, store: Store, run_dir: Path) -> None:
    """Compare the store with the one that was trained on; another's normalisation would give nonsense.

    Raises:
        ValueError: normalisation or terrain are others.
    """
    if run.data_digest in (None, store.digest):
        return
    if run.scaling_digest != scaling_digest(config, store):
        raise ValueError(
            f"{config.data.store} has another normalisation or terrain than the data that {run_dir} was "
            "trained on, and its forecasts would be nonsense. Put the store of the training back."
        )
    warnings.warn(
        f"{config.data.store} has changed since {run_dir} was trained, though neither its normalisation nor "
        "its terrain: what follows is about the data as they are today",
        stacklevel=3,
    )
