"""Loading a run or an exported model, and running it on a batch; without pickle and DeepSpeed."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from aqtopo.checkpoint.files import FileRecord, check_files, load_weights
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, RunFacts, read_manifest
from aqtopo.checkpoint.tags import Tag, find_tag, read_lock
from aqtopo.config import RunConfig
from aqtopo.config.errors import describe
from aqtopo.data.batch import Batch
from aqtopo.data.coordinates import GRID_TOLERANCE_DEG
from aqtopo.data.statistics import Normalization, normalization_for, scaling_digest
from aqtopo.data.store import Store, open_run_store, open_store
from aqtopo.data.units import same_units
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.inference.card import CARD_FILE, MODULE, STATIC_FILE, Card, is_export, read_card
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.run_file import CONFIG_FILE, read_run_config, training_path
from aqtopo.text import abridged
from aqtopo.variables import NEEDED_CHANNELS, VARIABLES

SHOWN_TENSORS = 3
"""Tensors of each kind that a message names."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with its data, in evaluation mode on the CPU.

    `run_dir` may be an exported folder; `tag` is None if other code trained the model.
    """

    run_dir: Path
    config: RunConfig
    tag: Tag | None
    model: AirQualityViT
    store: Store
    normalization: Normalization

    @property
    def tag_name(self) -> str:
        """Name of the saved state."""
        return MODULE if self.tag is None else self.tag.name


def load_run(run_dir: Path, tag: str = "best", store_path: Path | None = None) -> LoadedRun:
    """Load the saved state `tag` of a run: `best`, `last` or a tag's name.

    `store_path` is the place of the training's store, if it has moved.

    Raises:
        ValueError: the run or tag does not exist, its weights do not fit the model, or its store is unusable
            or has another normalisation or terrain.
        RefusedError: the weights have changed since they were saved.
    """
    config = read_run_config(run_dir)
    found = find_tag(run_dir, tag)
    place = store_path or training_path(run_dir, config, config.data.store)
    if not place.exists():
        raise ValueError(
            f"There is no data store at {place}, with which the run {run_dir} was trained. Restore it, or "
            "name its new place with --store (from Python: store=)."
        )
    store = open_run_store(config, place)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    path = found.folder(run_dir) / WEIGHTS_FILE
    try:
        with read_lock(path.parent):
            manifest = read_manifest(path.parent)
            _check_data(manifest.run, config, store, run_dir)
            check_files(path.parent, {WEIGHTS_FILE: _record(manifest.files, path)}, SINGLE_RANK)
            load_strictly(
                model,
                load_weights(path),
                f"{path} does not fit the model of {run_dir / CONFIG_FILE}",
                "Restore the configuration of the training, or name another --tag.",
            )
    except (RefusedError, FileNotFoundError) as error:
        if path.parent.exists():
            raise
        raise ValueError(
            f"{path.parent} was removed while it was read: its run goes on training. Repeat the command, or "
            "name another --tag."
        ) from error
    return LoadedRun(run_dir, config, found, model.eval(), store, normalization_for(config, store))


def load_strictly(
    model: AirQualityViT, weights: Mapping[str, torch.Tensor], misfit: str, remedy: str
) -> None:
    """Load weights that have exactly the tensors of a model.

    Raises:
        ValueError: names or shapes differ; the message is `misfit`, the differences and `remedy`.
    """
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{misfit}: {_differences(model, weights) or error}. {remedy}") from error


def _differences(model: AirQualityViT, weights: Mapping[str, torch.Tensor]) -> str:
    """Describe the tensors that differ in name or shape: numbers and first names."""
    expected = model.state_dict()
    shapes = {
        name: f"{list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    }
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [f"{name} {shape}" for name, shape in shapes.items()],
    }
    return "; ".join(
        f"{len(names)} tensor(s) {kind} ({abridged(names, SHOWN_TENSORS)})"
        for kind, names in kinds.items()
        if names
    )


def _record(files: Mapping[str, FileRecord], path: Path) -> FileRecord:
    if path.name not in files:
        raise RefusedError(f"the manifest of {path.parent} does not list {path.name}. Choose another --tag.")
    return files[path.name]


def _check_data(run: RunFacts, config: RunConfig, store: Store, run_dir: Path) -> None:
    """Raise ValueError if the store has another normalisation or terrain than in the training."""
    if run.data_digest in (None, store.digest):
        return
    if run.scaling_digest != scaling_digest(config, store):
        raise ValueError(
            f"{store.path} has another normalisation or terrain than the data that {run_dir} was trained on, "
            "so forecasts would be wrong. Restore the store of the training. To use other data, export the "
            f"run first (`aqtopo export {run_dir} OUT`)."
        )
    warnings.warn(
        f"{store.path} has changed since {run_dir} was trained, but not its normalisation and "
        "terrain: the results are those of the current data",
        stacklevel=3,
    )


def load_model(path: Path, tag: str = "best", store: Path | None = None) -> LoadedRun:
    """Load a trained model from a run directory or from an exported folder.

    `tag` selects a state of a run; an exported model has only one. `store` replaces the store of the
    training: for a run it must have the same normalisation and terrain, for an exported model the same grid.
    An exported model whose training store does not exist here is loaded without hours.

    Raises:
        ValueError: there is no such model or state, or the store has another grid.
        RefusedError: the files have changed since they were saved.
    """
    if is_export(path):
        return _load_export(path, tag, store)
    return load_run(path, tag, store)


def _load_export(folder: Path, tag: str, store_path: Path | None) -> LoadedRun:
    card = read_card(folder)
    if tag not in ("best", card.tag):  # best is the commands' default
        raise ValueError(
            f"--tag {tag}: {folder} is an exported model, which holds one state, {card.tag}. Omit --tag, or "
            "name the run directory."
        )
    check_files(folder, card.files, SINGLE_RANK)
    config = _config_in(card, folder)
    static = _static_of(card, folder)
    place = store_path or Path(config.data.store)
    if store_path is None and not place.exists():
        store = _store_of_card(card, config, static)
    else:
        store = _as_in_training(open_store(place), card, static)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    load_strictly(
        model,
        load_weights(folder / card.model_file),
        f"the weights in {folder} do not fit the model of their card",
        "Export the run again.",
    )
    return LoadedRun(folder, config, card.state, model.eval(), store, normalization_for(config, store))


def check_hours(run: LoadedRun) -> None:
    """Check that a model has a store.

    Raises:
        ValueError: it was exported, and the store of its training does not exist here.
    """
    if not run.store.times.size:
        raise ValueError(
            f"There is no data store at {run.store.path}, with which the exported model {run.run_dir} was "
            "trained. Name a store on its grid with --store (from Python: store=)."
        )


def _static_of(card: Card, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the static fields and axes of an export; raise ValueError if one is missing or misshapen."""
    rows, columns = card.data.cells
    tensors = load_weights(folder / STATIC_FILE)
    shapes = dict.fromkeys((*NEEDED_CHANNELS["static"], *tensors), (rows, columns))
    for name, shape in (shapes | {"lat": (rows,), "lon": (columns,)}).items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype not in (torch.float32, torch.float64):
            given = "no" if found is None else f"the {found.dtype} {tuple(found.shape)}"
            raise ValueError(
                f"{folder / STATIC_FILE} has {given} `{name}`, and its card a grid of {rows} x {columns} "
                "cells. Export the model again with `aqtopo export`."
            )
    return {name: values.numpy() for name, values in tensors.items()}


def _store_of_card(card: Card, config: RunConfig, static: dict[str, np.ndarray[Any, Any]]) -> Store:
    """Return the grid, channels and statistics of the training."""
    described = {**VARIABLES, **{variable.name: variable for variable in card.variables}}
    channels = tuple(name for name in config.data.channels if described[name].kind == "dynamic")
    return Store(
        path=config.data.store,
        times=np.empty(0, "datetime64[h]"),
        channels=channels,
        lat=static.pop("lat"),
        lon=static.pop("lon"),
        static=static,
        variables={name: described[name] for name in (*channels, *static) if name in described},
        statistics=(),
        mean=card.normalization.mean,
        std=card.normalization.std,
        statistics_years=card.normalization.statistics_years,
        source=card.data.source,
        attributes={"simulated": "yes" if card.data.simulated else "no"},
        digest=card.data.digest,
    )


def _config_in(card: Card, folder: Path) -> RunConfig:
    """Return the configuration of the training; raise ValueError if this version does not support it."""
    try:
        return RunConfig.model_validate(card.config)
    except ValidationError as error:
        faults = describe(error, RunConfig, str(folder / CARD_FILE))
        version = card.exported_with.get("aqtopo")
        raise ValueError(f"{faults}\nThe model was exported by aqtopo {version}: use that version.") from None


def _as_in_training(store: Store, card: Card, static: dict[str, np.ndarray[Any, Any]]) -> Store:
    """Return the store with the training's grid, static fields and statistics.

    Longitudes are compared modulo 360.

    Raises:
        ValueError: it is on another grid.
    """
    axes = {name: static.pop(name) for name in ("lat", "lon")}
    for name, expected in axes.items():
        axis: NDArray[np.float64] = getattr(store, name)
        turn = 360.0 * np.round((axis[0] - expected[0]) / 360.0) if name == "lon" else 0.0
        if axis.shape != expected.shape or np.abs(axis - turn - expected).max() > GRID_TOLERANCE_DEG:
            remedy = "Interpolate the data to that grid."
            if axis.shape == expected.shape and np.abs(axis[::-1] - expected).max() <= GRID_TOLERANCE_DEG:
                way = f"`d.sortby('{name}', ascending={expected[0] < expected[-1]})`"
                remedy = f"Write the store with its rows the other way: {way}."
            raise ValueError(
                f"{store.path} is on another grid than {card.name} was trained on: its {name} has "
                f"{axis.size} values from {axis[0]:g} to {axis[-1]:g}, and the model needs {expected.size} "
                f"from {expected[0]:g} to {expected[-1]:g}. {remedy}"
            )
    trained = {variable.name: variable for variable in card.variables}
    for name, found in store.variables.items():
        if name in trained and not same_units(found.units, trained[name].units):
            raise ValueError(
                f"{store.path} has {name} in {found.units!r}, and {card.name} was trained on it in "
                f"{trained[name].units!r}. Convert it and write the store anew."
            )
    dynamic = {name: trained.get(name, v) for name, v in store.variables.items() if v.kind == "dynamic"}
    fixed = {**VARIABLES, **trained}
    return replace(
        store,
        lat=axes["lat"],
        lon=axes["lon"],
        static=static,
        variables=dynamic | {name: fixed[name] for name in static if name in fixed},
        mean=card.normalization.mean,
        std=card.normalization.std,
        statistics_years=card.normalization.statistics_years,
    )


def predict(run: LoadedRun, batch: Batch) -> NDArray[np.float32]:
    """Run inference on one batch, on the GPU if there is one.

    Returns:
        (B, K, C, H, W) in the units of the targets.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = run.model.to(device).eval()
    on_device = batch.to(device)
    with torch.inference_mode():
        normalised = model(*on_device.model_inputs)
    return run.normalization.denormalize(normalised.float().cpu().numpy(), run.config.data.targets)
