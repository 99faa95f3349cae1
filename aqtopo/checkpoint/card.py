"""A trained model to hand on: a folder with weights, the terrain it needs, and a card that says what it is.

OUT/card.json            what it was trained on and with, how it scores, its normalisation, hashes of the rest
OUT/weights.safetensors  every weight by name in fp32, those that `aqtopo evaluate` scores
OUT/static.safetensors   the static fields and coordinates of the grid

Nothing in it is a pickle, and reading it needs no DeepSpeed.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from aqtopo.checkpoint.files import FileRecord, check_files, settle, sync, write_durably, write_tensors
from aqtopo.checkpoint.manifest import package_versions, source_commit
from aqtopo.checkpoint.ranks import ALONE
from aqtopo.checkpoint.tags import UNFINISHED, Tag
from aqtopo.checkpoint.weights import WEIGHTS_FILE, LoadedRun, load_run, load_weights
from aqtopo.config import RunConfig
from aqtopo.config.errors import describe
from aqtopo.config.record import read_record
from aqtopo.config.strict import Strict
from aqtopo.data.statistics import normalization_for
from aqtopo.data.store import Store, open_store
from aqtopo.model import Terrain, build_model
from aqtopo.run_directory.run_file import RUN_FILE, read_run_file

CARD_FILE = "card.json"
STATIC_FILE = "static.safetensors"
GRID_TOLERANCE_DEG = 1e-4


class DataFacts(Strict):
    """What the model was trained on."""

    source: str
    simulated: bool
    digest: str
    train_years: tuple[int, ...]
    validation_years: tuple[int, ...]
    test_years: tuple[int, ...]
    cells: tuple[int, int]
    """Rows and columns of the grid."""
    lat_range: tuple[float, float]
    """Degrees north."""
    lon_range: tuple[float, float]
    """Degrees east."""


class NormalizationFacts(Strict):
    """What inputs are normalised with, by variable, in its units."""

    kind: str
    statistics_years: tuple[int, ...]
    mean: dict[str, float]
    std: dict[str, float]


class Card(Strict):
    """What `card.json` holds."""

    format_version: Literal[1] = 1
    name: str
    description: str
    exported: str
    state: Tag
    tag: str
    data: DataFacts
    normalization: NormalizationFacts
    scores: dict[str, Any] | None
    """What `scores.json` says of this very state, without its strata; None where it was not evaluated."""
    config: dict[str, Any]
    config_digest: str
    trained_with: dict[str, Any]
    """What `run.json` says of the machine, the versions and the commit."""
    exported_with: dict[str, str | None]
    files: dict[str, FileRecord]


def export_model(run_dir: Path, tag: str, out: Path, scores: Mapping[str, Any] | None) -> Card:
    """Write a trained model into a new folder, whole or not at all.

    Args:
        run_dir: the run directory.
        tag: `best`, `last` or a tag's name.
        out: the folder to make.
        scores: what `scores.json` holds, if the run has been evaluated; left out if it is about another
            state.

    Raises:
        ValueError: as `load_run`, or `out` exists or has no folder.
        RefusedError: the state's files are not those that were saved.
    """
    if out.exists():
        raise ValueError(f"{out} exists, and nothing is written over. Name another folder.")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: there is no folder {out.parent}. Make it first.")
    run = load_run(run_dir, tag)
    aside = out.with_name(out.name + UNFINISHED)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        write_tensors(aside / WEIGHTS_FILE, run.model.state_dict())
        write_tensors(aside / STATIC_FILE, _static_tensors(run.store))
        files = {name: settle(aside / name) for name in (WEIGHTS_FILE, STATIC_FILE)}
        card = _card(run, scores, files)
        write_durably(aside / CARD_FILE, card.model_dump_json(indent=2) + "\n")
        aside.rename(out)
        sync(out.absolute().parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return card


def _static_tensors(store: Store) -> dict[str, torch.Tensor]:
    fields = {**store.static, "lat": store.lat, "lon": store.lon}
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in fields.items()}


def _card(run: LoadedRun, scores: Mapping[str, Any] | None, files: dict[str, FileRecord]) -> Card:
    own = scores is not None and scores.get("tag") == run.tag.name
    return Card(
        name=run.config.name,
        description=run.config.description,
        exported=datetime.now(UTC).isoformat(timespec="seconds"),
        state=run.tag,
        tag=run.tag.name,
        data=_data_facts(run.config, run.store),
        normalization=NormalizationFacts(
            kind=run.config.data.normalization,
            statistics_years=run.store.statistics_years,
            mean={name: value for name, value in run.store.mean.items() if math.isfinite(value)},
            std={name: value for name, value in run.store.std.items() if math.isfinite(value)},
        ),
        scores={k: v for k, v in scores.items() if k != "strata"} if scores and own else None,
        config=json.loads(run.config.to_json()),
        config_digest=run.config.digest,
        trained_with=_trained_with(run.run_dir),
        exported_with={"commit": source_commit(), **package_versions()},
        files=files,
    )


def _trained_with(run_dir: Path) -> dict[str, Any]:
    """What `run.json` says; nothing where a run has none.

    Raises:
        ValueError: it is damaged.
    """
    if not (run_dir / RUN_FILE).exists():
        return {}
    return read_run_file(run_dir).model_dump(mode="json", exclude_unset=True)


def _data_facts(config: RunConfig, store: Store) -> DataFacts:
    return DataFacts(
        source=store.source,
        simulated=store.simulated,
        digest=store.digest,
        train_years=config.data.train_years,
        validation_years=config.data.validation_years,
        test_years=config.data.test_years,
        cells=(store.lat.size, store.lon.size),
        lat_range=(float(store.lat.min()), float(store.lat.max())),
        lon_range=(float(store.lon.min()), float(store.lon.max())),
    )


def is_export(path: Path) -> bool:
    """Whether a folder is what `export_model` writes."""
    return (path / CARD_FILE).is_file()


def read_card(folder: Path) -> Card:
    """The card of an exported model.

    Raises:
        ValueError: it is missing or not one that this version wrote.
    """
    return read_record(folder / CARD_FILE, Card, "Export the model again with `aqtopo export`.")


def load_model(path: Path, tag: str = "best", store: Path | None = None) -> LoadedRun:
    """Open a trained model, from a run directory or from what `export_model` wrote.

    Args:
        path: a run directory or an exported folder.
        tag: which state of a run; an exported model has only the one that it was made from.
        store: hours to forecast from in place of the training's store; for exported models only, since a run
            is tied to its own.

    Raises:
        ValueError: there is no such model or state, or the store's grid is another.
        RefusedError: the files are not those that were saved.
    """
    if is_export(path):
        return _load_export(path, tag, store)
    if store is not None:
        raise ValueError(
            f"{path} is a run, which reads the store of its training. Export it first "
            f"(`aqtopo export {path} OUT`), then forecast from OUT with --store."
        )
    return load_run(path, tag)


def _load_export(folder: Path, tag: str, store_path: Path | None) -> LoadedRun:
    card = read_card(folder)
    if tag not in ("best", card.tag):  # the first is what a command says that was not asked for any
        raise ValueError(
            f"--tag {tag}: {folder} is an exported model, which holds one state, {card.tag}. Leave --tag "
            "out, or name the run directory."
        )
    check_files(folder, card.files, ALONE)
    config = _config_in(card, folder)
    static = {name: values.numpy() for name, values in load_weights(folder / STATIC_FILE).items()}
    store = _as_in_training(open_store(store_path or config.data.store), card, static)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    try:
        model.load_state_dict(load_weights(folder / WEIGHTS_FILE), strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit the model of their card: {error}") from error
    return LoadedRun(folder, config, card.state, model.eval(), store, normalization_for(config, store))


def _config_in(card: Card, folder: Path) -> RunConfig:
    """The configuration that the model was trained with.

    Raises:
        ValueError: this version knows no such configuration.
    """
    try:
        return RunConfig.model_validate(card.config)
    except ValidationError as error:
        faults = describe(error, RunConfig, str(folder / CARD_FILE))
        version = card.exported_with.get("aqtopo")
        raise ValueError(f"{faults}\nThe model was exported by aqtopo {version}: use that version.") from None


def _as_in_training(store: Store, card: Card, static: dict[str, np.ndarray[Any, Any]]) -> Store:
    """The store's hours with the static fields and the statistics of the training, whatever it has itself.

    Raises:
        ValueError: its cells lie elsewhere.
    """
    axes = {"lat": store.lat, "lon": store.lon}
    for name, axis in axes.items():
        expected = static.pop(name)
        if axis.shape != expected.shape or np.abs(axis - expected).max() > GRID_TOLERANCE_DEG:
            raise ValueError(
                f"{store.path} is on another grid than {card.name} was trained on: its {name} has "
                f"{axis.size} values from {axis[0]:g} to {axis[-1]:g}, and the model needs {expected.size} "
                f"from {expected[0]:g} to {expected[-1]:g}. Bring the data to that grid."
            )
    return replace(
        store,
        static=static,
        mean=card.normalization.mean,
        std=card.normalization.std,
        statistics_years=card.normalization.statistics_years,
    )
