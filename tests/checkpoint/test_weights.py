from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aqtopo.checkpoint import Tag, load_run, load_weights
from aqtopo.checkpoint.tags import write_state
from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.model import AirQualityViT, Terrain, build_model

SavedRun = tuple[Path, AirQualityViT]
TAG = Tag(epoch=0, step=3, step_in_epoch=3, val_loss=0.5, train_loss=0.6)


@pytest.fixture
def saved_run(tiny_config: Callable[..., RunConfig]) -> SavedRun:
    """A run directory with one saved state of an untrained model, and that model."""
    config = tiny_config()
    store = open_store(config.data.store)
    model = build_model(config, Terrain(store.static["elevation"], store.lat))
    run_dir = Path(config.training.run_dir)
    TAG.folder(run_dir).mkdir(parents=True)
    (run_dir / "config.json").write_text(config.to_json())
    save_file(model.state_dict(), TAG.folder(run_dir) / "weights.safetensors")
    write_state(TAG, run_dir)
    return run_dir, model


def test_loaded_run_has_the_saved_weights_in_evaluation_mode(saved_run: SavedRun) -> None:
    run_dir, model = saved_run
    run = load_run(run_dir)
    assert run.tag == TAG
    assert not run.model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], tensor, rtol=0, atol=0)


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
    save_file(state, TAG.folder(run_dir) / "weights.safetensors")
    with pytest.raises(ValueError, match=r"(?s)does not fit the model.*pos_embed"):
        load_run(run_dir)
