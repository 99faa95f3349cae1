"""Exports: a trained model as a folder with a card, or the weights of a saved state as one file.

Neither contains a pickle; reading them needs no DeepSpeed.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqtopo.checkpoint.files import (
    FileRecord,
    check_files,
    load_weights,
    sync,
    sync_and_hash,
    write_durably,
    write_tensors,
)
from aqtopo.checkpoint.inspection import opened
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, package_versions, source_commit
from aqtopo.checkpoint.shards import MASTER, check_weights
from aqtopo.checkpoint.tags import STATE_FILE, read_tag, val_loss_in
from aqtopo.checkpoint.universal import SavedState
from aqtopo.config import RunConfig
from aqtopo.data.check import check_store
from aqtopo.data.store import Store, open_run_store
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.inference.card import (
    CARD_FILE,
    MODEL_FILE,
    README_FILE,
    STATIC_FILE,
    Card,
    DataFacts,
    NormalizationFacts,
    is_export,
    readme,
)
from aqtopo.inference.load import LoadedRun, load_run, load_strictly
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.run_directory.run_file import RUN_FILE, read_run_file
from aqtopo.safe_files import replacing

CONFIG_KEY = "config"
"""Metadata of a file of weights: the run's configuration as JSON, which names the rows of the tensors."""


def export_model(run_dir: Path, tag: str, out: Path, scores: Mapping[str, Any] | None) -> Card:
    """Write a state of a run into a new folder, as `export_run`.

    Raises:
        ValueError: as `load_run`, or `out` exists or its parent is missing.
        RefusedError: the state's files have changed since they were saved.
    """
    _check_new(out, "folder")
    return export_run(load_run(run_dir, tag), out, scores)


def export_module(
    module: AirQualityViT, out: Path, config: RunConfig, store_path: Path | None = None
) -> Card:
    """Write a model that was trained by other code into a new folder.

    Args:
        module: the model.
        out: new folder.
        config: inputs, targets, grid and training years of the model.
        store_path: store with the grid and the statistics of the training years; default: `data.store`.

    Raises:
        ValueError: the module or the store does not fit the configuration, or `out` exists.
    """
    _check_new(out, "folder")
    store = open_run_store(config, store_path)
    normalization = check_store(store, config)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    load_strictly(
        model,
        module.state_dict(),
        f"the module does not fit the configuration {config.name}",
        "Give the configuration of its training, with the same `model`, grid, inputs, targets and horizons.",
    )
    return export_run(LoadedRun(Path(), config, None, model.eval(), store, normalization), out, None)


def export_run(run: LoadedRun, out: Path, scores: Mapping[str, Any] | None) -> Card:
    """Write a loaded run into a new folder, by atomic rename.

    `scores` is the content of `scores.json`, if the run has been evaluated. Scores of another state are
    ignored.

    Raises:
        ValueError: `out` exists or its parent is missing, or the model was loaded from an export.
    """
    _check_new(out, "folder")
    if is_export(run.run_dir):
        raise ValueError(f"{run.run_dir} is an exported model. Copy the folder.")
    with replacing(out) as temporary:
        temporary.mkdir()
        write_tensors(temporary / MODEL_FILE, run.model.state_dict(), {"format": "pt"})
        write_tensors(temporary / STATIC_FILE, _static_tensors(run.store))
        files = {name: sync_and_hash(temporary / name) for name in (MODEL_FILE, STATIC_FILE)}
        card = _card(run, scores, files)
        write_durably(temporary / CARD_FILE, card.model_dump_json(indent=2) + "\n")
        write_durably(temporary / README_FILE, readme(card))
    sync(out.absolute().parent)
    return card


def _check_new(out: Path, kind: str) -> None:
    if out.exists():
        raise ValueError(f"{out} exists. Name a new {kind}.")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: there is no folder {out.parent}. Create it first.")


def _static_tensors(store: Store) -> dict[str, torch.Tensor]:
    fields = {**store.static, "lat": store.lat, "lon": store.lon}
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in fields.items()}


def _card(run: LoadedRun, scores: Mapping[str, Any] | None, files: dict[str, FileRecord]) -> Card:
    config, store = run.config, run.store
    own = scores is not None and scores.get("tag") == run.tag_name
    facts = read_run_file(run.run_dir) if (run.run_dir / RUN_FILE).exists() else None
    return Card(
        name=config.name,
        description=config.description,
        exported=datetime.now(UTC).isoformat(timespec="seconds"),
        state=run.tag,
        tag=run.tag_name,
        data=DataFacts(
            source=store.source,
            simulated=store.simulated,
            digest=store.digest,
            train_years=config.data.train_years,
            validation_years=config.data.validation_years,
            test_years=config.data.test_years,
            cells=(store.lat.size, store.lon.size),
            lat_range=(float(store.lat.min()), float(store.lat.max())),
            lon_range=(float(store.lon.min()), float(store.lon.max())),
        ),
        normalization=NormalizationFacts(
            kind=config.data.normalization,
            statistics_years=store.statistics_years,
            mean={name: value for name, value in store.mean.items() if math.isfinite(value)},
            std={name: value for name, value in store.std.items() if math.isfinite(value)},
        ),
        inputs=config.inputs,
        variables=tuple(store.variables[name] for name in dict.fromkeys(config.data.channels)),
        scores={k: v for k, v in scores.items() if k != "strata"} if scores and own else None,
        config=json.loads(config.to_json()),
        config_digest=config.digest,
        trained_with=facts.model_dump(mode="json", exclude_unset=True, exclude={"folder"}) if facts else {},
        exported_with={"commit": source_commit(), **package_versions()},
        files=files,
    )


def export_weights(path: Path, out: Path) -> dict[str, str]:
    """Write the fp32 weights of a saved state as one safetensors file, after checking its files.

    Trained parameters are the fp32 masters at any precision of the run; frozen ones and buffers are those of
    the module. A tied parameter is written under each of its names. `path` is a tag, a universal checkpoint,
    or a run (its last tag).

    Returns:
        Facts of the file's metadata: tag, step, epoch, val_loss and config_digest, as text.

    Raises:
        ValueError: there is no state, or `out` exists or its parent is missing.
        RefusedError: the state's files have changed since they were saved.
    """
    _check_new(out, "file")
    with replacing(out) as temporary, opened(path) as (state,):
        check_files(state.folder, state.manifest.files, SINGLE_RANK)
        check_weights(state.folder, state.manifest)
        metadata = _metadata(state)
        config = {CONFIG_KEY: json.dumps(state.manifest.run.config)}
        write_tensors(temporary, _weights(state), metadata | config)
        sync(temporary)
    sync(out.parent)
    return metadata


def _weights(state: SavedState) -> dict[str, Tensor]:
    """Return every tensor of the module by name, floating point in fp32."""
    weights = load_weights(state.folder / WEIGHTS_FILE)
    weights = {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
    for name in state.manifest.parameters:
        weights[name] = state.tensor(name, MASTER)
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
