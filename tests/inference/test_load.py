import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from aqtopo.checkpoint import Tag
from aqtopo.checkpoint.files import describe_file, load_weights
from aqtopo.checkpoint.manifest import read_manifest, write_manifest
from aqtopo.config import RunConfig
from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.inference import load
from aqtopo.inference.load import load_run
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.refusal import RefusedError

SavedRun = tuple[Path, AirQualityViT]
TAG = Tag(epoch=0, step=7, step_in_epoch=7, val_loss=0.5, train_loss=0.6)


@pytest.fixture
def saved_run(tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]) -> SavedRun:
    """A run directory with one saved state of an untrained model, and that model."""
    config = tiny_config()
    run_dir = save_untrained(config)
    store = open_store(config.data.store)
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    model.load_state_dict(load_weights(TAG.folder(run_dir) / "weights.safetensors"))
    return run_dir, model


def test_loaded_run_has_the_saved_weights_in_evaluation_mode(saved_run: SavedRun) -> None:
    run_dir, model = saved_run
    run = load_run(run_dir)
    assert run.tag == TAG
    assert not run.model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_bfloat16_run_is_scored_in_float32(
    tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]
) -> None:
    run = load_run(save_untrained(tiny_config(deepspeed={"bf16": {"enabled": True}})))
    assert {tensor.dtype for tensor in run.model.parameters()} == {torch.float32}


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory: it has no config\.json"):
        load_run(tmp_path)


def test_truncated_weights_are_named(saved_run: SavedRun) -> None:
    path = TAG.folder(saved_run[0]) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read the weights .*weights\.safetensors"):
        load_weights(path)


def test_weights_of_another_model_are_refused(saved_run: SavedRun) -> None:
    run_dir, model = saved_run
    state = model.state_dict()
    del state["pos_embed"]
    path = TAG.folder(run_dir) / "weights.safetensors"
    save_file(state, path)
    manifest = read_manifest(path.parent)
    files = manifest.files | {path.name: describe_file(path)}
    write_manifest(manifest.model_copy(update={"files": files}), path.parent)
    with pytest.raises(ValueError, match=r"(?s)does not fit the model.*pos_embed"):
        load_run(run_dir)


def test_flipped_bit_in_the_weights_is_refused(saved_run: SavedRun) -> None:
    path = TAG.folder(saved_run[0]) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RefusedError, match=r"weights\.safetensors: bytes"):
        load_run(saved_run[0])


def rewrite(store: Path, dataset: xr.Dataset) -> None:
    shutil.rmtree(store, ignore_errors=True)
    write_store(dataset, store)
    write_statistics(store, [2016])


@pytest.fixture
def own_store(tmp_path: Path, tiny_dataset: xr.Dataset) -> Path:
    """A store that may be changed."""
    rewrite(tmp_path / "own.zarr", tiny_dataset)
    return tmp_path / "own.zarr"


@pytest.fixture
def run_on_own_store(
    own_store: Path, tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]
) -> Path:
    """A run directory that was trained on it."""
    return save_untrained(tiny_config(data={"store": str(own_store)}))


def test_store_with_another_normalisation_is_refused(
    run_on_own_store: Path, own_store: Path, tiny_dataset: xr.Dataset
) -> None:
    rewrite(own_store, tiny_dataset.assign(fields=tiny_dataset["fields"] * np.float32(1.01)))
    with pytest.raises(ValueError, match="another normalisation or terrain"):
        load_run(run_on_own_store)


def test_another_change_of_the_store_gives_a_warning(
    run_on_own_store: Path, own_store: Path, tiny_dataset: xr.Dataset
) -> None:
    rewrite(own_store, tiny_dataset.assign_attrs(source="the same, told otherwise"))
    with pytest.warns(UserWarning, match="has changed since"):
        loaded = load_run(run_on_own_store)
    assert loaded.store.source == "the same, told otherwise"


def test_other_longitudes_are_refused_with_a_local_bias(
    own_store: Path,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[..., Path],
    tiny_dataset: xr.Dataset,
) -> None:
    config = tiny_config(data={"store": str(own_store)}, model={"local_bias": "near"})
    run_dir = save_untrained(config)
    rewrite(own_store, tiny_dataset.assign_coords(lon=tiny_dataset["lon"].values / 2))
    with pytest.raises(ValueError, match="another normalisation or terrain"):
        load_run(run_dir)


def test_state_that_its_run_removes_while_it_is_read_is_refused(
    saved_run: SavedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = TAG.folder(saved_run[0])

    def remove_first(*arguments: object) -> AirQualityViT:
        shutil.rmtree(folder, ignore_errors=True)
        return build_model(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "build_model", remove_first)
    with pytest.raises(ValueError, match=r"was removed while it was read.*Repeat the command"):
        load_run(saved_run[0])
