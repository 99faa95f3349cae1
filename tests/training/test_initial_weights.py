"""Fine-tuning: where the initial weights come from, and what is reported, refused and reset."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from aqtopo.checkpoint.changes import Allowed
from aqtopo.checkpoint.manifest import read_manifest
from aqtopo.checkpoint.tags import last_tag, list_tags
from aqtopo.config import RunConfig
from aqtopo.distributed.launch import read_launch
from aqtopo.inference.export import CONFIG_KEY, export_model, export_weights
from aqtopo.inference.load import load_run
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.refusal import RefusedError
from aqtopo.training.initial_weights import CLIMAX_VARIABLES, initial_weights
from aqtopo.training.prepare import ResumeOptions
from aqtopo.training.start import train
from aqtopo.variables import INPUT_VARIABLES
from tests.conftest import SaveUntrained, TinyConfig
from tests.events import events

PER_INPUT = {"token_embeds.proj_weights": 0, "token_embeds.proj_biases": 0, "var_embed": 1}


@pytest.fixture
def trained(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> Path:
    return save_untrained(tiny_config(), factor=2.0)


def fine_tuning(
    tiny_config: TinyConfig, source: Path, *fresh: str, **sections: dict[str, object]
) -> RunConfig:
    training = {"initial_weights": str(source), "fresh_weights": list(fresh), "seed": 5}
    training |= {"run_dir": str(source.parent / "tuned")}
    return tiny_config(**{**sections, "training": training})


def model_of(config: RunConfig) -> AirQualityViT:
    return build_model(config, Terrain.flat(config.data.grid))


def begun(config: RunConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The initial weights of a run, and what of them is fresh."""
    found = initial_weights(config, model_of(config))
    model_of(config).load_state_dict(found.state)
    with torch.device("meta"):
        checked = initial_weights(config, build_model(config, Terrain.flat(config.data.grid)))
    assert (checked.matched, checked.fresh, checked.unused) == (found.matched, found.fresh, found.unused)
    return found.state, list(found.fresh)


@pytest.mark.parametrize("kind", ["run", "state", "export", "file of an export"])
def test_same_model_takes_every_tensor(
    trained: Path, tiny_config: TinyConfig, tmp_path: Path, kind: str
) -> None:
    export_model(trained, "best", tmp_path / "model", None)
    sources = {"run": trained, "state": load_run(trained).tag.folder(trained), "export": tmp_path / "model"}
    sources["file of an export"] = tmp_path / "model" / "model.safetensors"
    state, fresh = begun(fine_tuning(tiny_config, sources[kind]))
    assert not fresh
    expected = load_run(trained).model.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_rows_are_matched_by_the_name_of_their_variable(trained: Path, tiny_config: TinyConfig) -> None:
    variables = [*reversed(INPUT_VARIABLES[:-1])]  # without population
    data = {"variables": variables, "history_hours": [6], "history_variables": ["pm25"]}
    data |= {"targets": ["no2", "pm25"]}
    config = fine_tuning(tiny_config, trained, "inputs.pm25_6h_before", data=data)
    state, fresh = begun(config)
    assert fresh == ["inputs.pm25_6h_before"]
    first, saved = model_of(config).state_dict(), load_run(trained).model.state_dict()
    for name, dim in PER_INPUT.items():
        for place, variable in enumerate(config.inputs):
            known = variable in INPUT_VARIABLES
            row, rows = (INPUT_VARIABLES.index(variable), saved) if known else (place, first)
            expected = rows[name].select(dim, row)
            torch.testing.assert_close(state[name].select(dim, place), expected, rtol=0, atol=0)
    head = next(reversed([name for name in state if name.startswith("head.") and name.endswith("weight")]))
    before = saved[head].reshape(4, 6, -1)[:, [3, 0]]
    torch.testing.assert_close(state[head].reshape(4, 2, -1), before, rtol=0, atol=0)


def test_new_targets_and_horizons_of_the_local_path_start_fresh(
    tiny_config: TinyConfig, save_untrained: SaveUntrained, tmp_path: Path
) -> None:
    size = {"data": {"targets": ["pm25", "o3"], "horizons": [12, 24]}, "model": {"local_path": True}}
    grid = {"grid": [16, 16]}
    saved_config = tiny_config(
        **{**size, "data": size["data"] | grid}, training={"run_dir": str(tmp_path / "a")}
    )
    saved = model_of(saved_config).state_dict()
    saved = {name: tensor + 1.0 for name, tensor in saved.items()}
    save_file(saved, tmp_path / "w.safetensors", {"config": saved_config.to_json()})
    data = {"targets": ["co", "pm25"], "horizons": [24, 48], **grid}
    config = fine_tuning(
        tiny_config, tmp_path / "w.safetensors", "targets.co", "horizons.*", data=data, model=size["model"]
    )
    state, fresh = begun(config)
    assert set(fresh) == {"targets.co", "horizons.48"}
    torch.testing.assert_close(state["local_path.weight"][0, 1], saved["local_path.weight"][1, 0])
    assert not state["local_path.weight"][1].any()
    assert not state["local_path.weight"][0, 0].any()


@pytest.mark.parametrize("grid", [(16, 32), (8, 8)])
def test_position_embedding_is_interpolated_in_raster_order(
    trained: Path, tiny_config: TinyConfig, grid: tuple[int, int]
) -> None:
    config = fine_tuning(tiny_config, trained, data={"grid": list(grid)}, model={"regions": [1, 2]})
    found = initial_weights(config, model_of(config))
    assert found.interpolated_from == (4, 8)
    assert "pos_embed interpolated from 4 x 8 patches" in found.line("x")
    old, new = model_of(tiny_config()), model_of(config)
    assert old.wind_order is not None
    assert new.wind_order is not None
    raster = torch.empty(1, 32, 32)
    raster[:, old.wind_order.calm_order()] = load_run(trained).model.pos_embed.detach()
    maps = raster.transpose(1, 2).reshape(1, 32, 4, 8)
    maps = functional.interpolate(maps, config.patch_grid, mode="bicubic")
    expected = maps.flatten(2).transpose(1, 2)[:, new.wind_order.calm_order()]
    torch.testing.assert_close(found.state["pos_embed"], expected, rtol=0, atol=0)


def test_what_starts_fresh_must_be_allowed(trained: Path, tiny_config: TinyConfig) -> None:
    data = {"variables": [*INPUT_VARIABLES, "hcho"]}
    model = {"depth": 3, "mlp_ratio": 2.0}
    config = fine_tuning(tiny_config, trained, data=data, model=model)
    with pytest.raises(ValueError, match=r"(?s)lacks parts of this model.*fresh_weights = ") as refused:
        initial_weights(config, model_of(config))
    message = str(refused.value)
    assert "inputs.hcho: not among the saved rows" in message
    assert "blocks.2.norm1.weight [32]: not saved" in message
    assert "blocks.0.mlp.fc1.weight [64, 32]: saved with [128, 32]" in message
    allowed = fine_tuning(
        tiny_config, trained, "inputs.hcho", "blocks.2.*", "*.mlp.*", data=data, model=model
    )
    assert "blocks.0.mlp.fc1.weight" in begun(allowed)[1]


def test_file_without_names_of_rows_is_not_matched_by_position(
    trained: Path, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    save_file(load_run(trained).model.state_dict(), tmp_path / "plain.safetensors")
    config = fine_tuning(tiny_config, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"var_embed \[1, 15, 32\]: the names of its saved rows are unknown"):
        initial_weights(config, model_of(config))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float4_e2m1fn_x2])
def test_weights_that_are_no_floating_point_numbers_are_refused(
    tiny_config: TinyConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    config = fine_tuning(tiny_config, tmp_path / "plain.safetensors", "*")
    weights = model_of(config).state_dict()
    weights["norm.weight"] = weights["norm.weight"].contiguous().view(torch.int32).view(dtype)
    save_file(weights, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=f"holds norm.weight as {dtype}, and the model's is torch.float32"):
        initial_weights(config, model_of(config))


def test_weights_with_fewer_rows_than_their_configuration_start_fresh(
    trained: Path, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    weights = load_run(trained).model.state_dict()
    cut = {"token_embeds.proj_biases": 14, "head.4.bias": 1}
    weights |= {name: weights[name][:rows].clone() for name, rows in cut.items()}
    config = tiny_config()
    save_file(weights, tmp_path / "cut.safetensors", {CONFIG_KEY: config.to_json()})
    assert begun(fine_tuning(tiny_config, tmp_path / "cut.safetensors", "*"))[1] == list(cut)


def climax(path: Path, config: RunConfig, **more: object) -> dict[str, Tensor]:
    """Write a small checkpoint with the names of the published ones; its tensors by our names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        count = len(CLIMAX_VARIABLES)
        own = {name: torch.randn_like(tensor) for name, tensor in model_of(config).state_dict().items()}
        own["var_embed"] = torch.randn(1, count, 32)
        own["token_embeds.proj_weights"] = torch.randn(count, 32, 1, 2, 2)
        own["token_embeds.proj_biases"] = torch.randn(count, 32)
        own["pos_embed"] = torch.randn(1, 8 * 16, 32)
    theirs = {name: t for name, t in own.items() if "token_embeds" not in name and "alpha" not in name}
    theirs |= {f"token_embeds.{i}.proj.weight": t for i, t in enumerate(own["token_embeds.proj_weights"])}
    theirs |= {f"token_embeds.{i}.proj.bias": t for i, t in enumerate(own["token_embeds.proj_biases"])}
    state = {f"net.{name.replace('var_', 'channel_')}": tensor for name, tensor in theirs.items()}
    torch.save({"state_dict": state, "epoch": 3, **more}, path)
    return own


def test_climax_checkpoint_gives_its_fields_by_name(tiny_config: TinyConfig, tmp_path: Path) -> None:
    own = climax(tmp_path / "climax.ckpt", tiny_config())
    new = [f"inputs.{name}" for name in INPUT_VARIABLES if name not in CLIMAX_VARIABLES]
    config = fine_tuning(tiny_config, tmp_path / "climax.ckpt", *new, "head.*", "*.alpha")
    found = initial_weights(config, model_of(config))
    assert set(new) < set(found.fresh)
    assert found.interpolated_from == (8, 16)
    assert "inputs.geopotential_500" in found.unused
    for name in ("u", "v", "temp", "elevation", "lat2d"):
        row, place = CLIMAX_VARIABLES.index(name), INPUT_VARIABLES.index(name)
        torch.testing.assert_close(found.state["var_embed"][0, place], own["var_embed"][0, row])
        weights = "token_embeds.proj_weights"
        torch.testing.assert_close(found.state[weights][place], own[weights][row])
    torch.testing.assert_close(found.state["norm.weight"], own["norm.weight"])


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_unusable_files_are_refused(
    tiny_config: TinyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    climax(tmp_path / "harmful.ckpt", tiny_config(), extra=Harmful())
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Harmful()))
    odd = {"other": torch.zeros(1), "var_embed": torch.zeros(()), "pos_embed": torch.zeros(3)}
    odd |= {f"token_embeds.{size}.proj.bias": torch.zeros(size) for size in (0, 1)}
    torch.save({"state_dict": odd}, tmp_path / "other.ckpt")
    torch.save({"state_dict": [1]}, tmp_path / "list.ckpt")
    save_file({"var_query": torch.zeros(1)}, tmp_path / "text.safetensors", {"config": "{"})
    save_file({"var_query": torch.zeros(1)}, tmp_path / "none.safetensors", {"config": "[]"})
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("harmful.ckpt", RefusedError, "holds more than data"),
        ("old.ckpt", RefusedError, "cannot be read|holds more than data"),
        ("other.ckpt", ValueError, "no tensor fits this model"),
        ("list.ckpt", ValueError, "holds no `state_dict`"),
        ("text.safetensors", ValueError, "is not JSON"),
        ("none.safetensors", ValueError, "its configuration"),
        ("damaged.safetensors", ValueError, "cannot read the weights"),
        ("folder", ValueError, "holds no saved state"),
        ("absent", ValueError, "does not exist"),
    ):
        config = fine_tuning(tiny_config, tmp_path / name)
        with pytest.raises(error, match=message):
            initial_weights(config, model_of(config))
    assert "ran" not in capsys.readouterr().out


@pytest.mark.slow
def test_fine_tuned_run_begins_at_step_0_with_these_weights(
    trained: Path, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    config = fine_tuning(tiny_config, trained, "inputs.pm25_6h_before")
    tree = json.loads(config.to_json())
    tree["data"] |= {"history_hours": [6], "history_variables": ["pm25"]}
    tree["training"] |= {"epochs": 1, "validate_every": 24}
    config = RunConfig.model_validate(tree)
    train(config, read_launch(), stop_after=1)
    run_dir = Path(config.training.run_dir)
    (event,) = events(run_dir, "initial_weights")
    assert event["fresh"] == ["inputs.pm25_6h_before"]
    assert event["matched"] == event["tensors"]
    assert [line["step"] for line in events(run_dir, "step")] == [1]
    tag = last_tag(run_dir)
    assert tag is not None
    before, after = load_run(trained).model.state_dict(), load_run(run_dir, "last").model.state_dict()
    moved = (after["blocks.1.mlp.fc1.weight"] - before["blocks.1.mlp.fc1.weight"]).abs().max()
    assert 0 < moved < 1e-2
    export_weights(run_dir, tmp_path / "masters.safetensors")
    again, fresh = begun(fine_tuning(tiny_config, tmp_path / "masters.safetensors"))
    assert not fresh
    torch.testing.assert_close(again["norm.weight"], after["norm.weight"], rtol=0, atol=0)
    train(config, read_launch(), stop_after=2, options=ResumeOptions())
    assert len(events(run_dir, "initial_weights")) == 1


@pytest.mark.slow
def test_resume_on_other_data_forgets_the_best_validation_loss(
    tiny_config: TinyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, **data: object) -> RunConfig:
        training = {"run_dir": str(tmp_path / name), "validate_every": 12, "epochs": 2}
        return tiny_config(data=data, training=training)

    train(run("old"), read_launch(), stop_after=12)
    state = last_tag(tmp_path / "old")
    assert state is not None
    folder = state.folder(tmp_path / "old")
    path = folder / "manifest.json"
    manifest = read_manifest(folder)
    assert manifest.run.losses.best_validation is not None
    for name, data, best in (
        ("same", {}, manifest.run.losses.best_validation),
        ("other", {"validation_stride_hours": 12}, None),
    ):
        options = ResumeOptions(str(folder), Allowed(settings=("data",)))
        capsys.readouterr()
        train(run(name, **data), read_launch(), stop_after=12, options=options)
        resumed = last_tag(tmp_path / name)
        assert resumed is not None
        assert read_manifest(resumed.folder(tmp_path / name)).run.losses.best_validation == best
        assert bool(events(tmp_path / name, "validation_reset")) == (best is None)
        told = capsys.readouterr().err
        assert ("do not count" in told) == ("best val_loss none" in told) == (best is None)
    assert path.is_file()
    for stride, number in ((12, 1), (18, 2)):
        changed = run("old", validation_stride_hours=stride)
        train(
            changed, read_launch(), stop_after=12 + number, options=ResumeOptions(allowed=Allowed(("data",)))
        )
        resumed = last_tag(tmp_path / "old")
        assert resumed is not None
        assert resumed.data == number
    assert state in list_tags(tmp_path / "old")
