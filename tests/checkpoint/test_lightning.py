"""A run that Lightning DDP saved goes on under ZeRO-2, with every moment, as Lightning itself goes on."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from aqtopo.checkpoint.changes import Allowed
from aqtopo.checkpoint.inspection import diff_states, open_state, verify_state
from aqtopo.checkpoint.universal import SavedState
from aqtopo.config import RunConfig
from aqtopo.lightning.checkpoint import read_lightning
from aqtopo.lightning.importer import import_lightning
from aqtopo.lightning.match import ParameterOrder, rename
from aqtopo.refusal import RefusedError
from aqtopo.variables import INPUT_VARIABLES
from tests.conftest import TinyConfig
from tests.events import events

from .conftest import Job, run_jobs_in

pytestmark = pytest.mark.xdist_group("lightning")

SAVED_STEP, MORE = 311, 20
KNOWN_RATES = {
    "vit_blocks": 8.145034e-06,
    "wind_embedding": 1.589846e-04,
    "head": 3.990074e-05,
    "others": 7.959537e-05,
}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> tuple[Path, RunConfig]:
    """Folder and configuration of a run of Lightning's: 173 micro-steps and 87 steps an epoch, 91 tensors."""
    folder = tmp_path_factory.mktemp("lightning")
    tree: dict[str, Any] = {
        "name": "published",
        "data": {
            "store": str(tiny_store),
            "grid": [8, 16],
            "horizons": [12, 67],
            "train_years": [2016],
            "validation_years": [2017],
            "test_years": [2018],
            "validation_stride_hours": 24,
            "workers": 0,
        },
        "model": {
            "dim": 16,
            "depth": 6,
            "heads": 2,
            "mlp_ratio": 2.0,
            "dropout": 0.0,
            "drop_path": 0.0,
            "regions": [2, 2],
        },
        "optimizer": {"base_lr": 1e-4},
        "schedule": {"eta_min": 1e-6},
        "training": {"run_dir": str(folder / "resumed1"), "epochs": 10, "nodes": 1, "ranks_per_node": 1},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": 2},
        },
    }
    config = RunConfig.model_validate(tree)
    path = folder / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    out = folder / "imported"
    train = ["train", str(path), "--resume", str(out), "--stop-after", str(SAVED_STEP + MORE)]
    lightning = {"config_path": str(path), "out": str(folder), "save_at": SAVED_STEP, "more": MORE}
    convert = ["checkpoint", "import-lightning", str(folder / "run.ckpt"), str(out), "--config", str(path)]
    elsewhere = ["--set", f"training.run_dir={folder / 'resumed2'}"]
    jobs = [
        Job(1, "train", lightning, file="lightning_run"),
        Job(1, "aqtopo", {"arguments": convert}),
        Job(1, "aqtopo", {"arguments": train}),
        Job(2, "aqtopo", {"arguments": [*train, *elsewhere]}),
    ]
    for ended in run_jobs_in(folder / "jobs", jobs):
        assert not any(ended.codes), ended.output[-4000:]
    return folder, config


@pytest.mark.slow
def test_import_has_all_tensors_in_four_groups_at_the_known_position(
    published: tuple[Path, RunConfig],
) -> None:
    state = open_state(published[0] / "imported")
    assert verify_state(state) == 4 * 91
    assert {g.name: len(g.parameters) for g in state.manifest.groups} == {
        "vit_blocks": 72,
        "wind_embedding": 2,
        "head": 6,
        "others": 11,
    }
    for group in state.manifest.groups:
        assert group.hyperparameters["lr"] == pytest.approx(KNOWN_RATES[group.name], rel=1e-6)
        assert group.next_lr == pytest.approx(KNOWN_RATES[group.name], rel=1e-6)
    position = state.manifest.run.position
    assert (position.epoch, position.step, position.step_in_epoch) == (3, 311, 50)


@pytest.mark.slow
def test_the_end_of_an_epoch_is_imported_with_the_next_epoch_s_rates(
    published: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    folder, config = published
    manifest = import_lightning(folder / "epoch2.ckpt", tmp_path / "out", config)
    position = manifest.run.position
    assert (position.epoch, position.step, position.step_in_epoch) == (2, 261, 87)
    assert position.next_samples is not None
    assert (position.next_samples.epoch, position.next_samples.step_in_epoch) == (3, 0)
    assert {group.name: group.next_lr for group in manifest.groups} == pytest.approx(KNOWN_RATES, rel=1e-6)


@pytest.mark.slow
def test_every_moment_belongs_to_its_parameter(published: tuple[Path, RunConfig]) -> None:
    state = open_state(published[0] / "imported")
    content = torch.load(published[0] / "run.ckpt", weights_only=True)
    optimizer = content["optimizer_states"][0]
    listed = [n.removeprefix("model.").replace("patch_embed", "token_embeds") for n in content["state_dict"]]
    order = {"others": 0, "head": 1, "vit_blocks": 2, "wind_embedding": 3}
    for group in state.manifest.groups:
        numbers = optimizer["param_groups"][order[group.name]]["params"]
        names = [name for name in listed if name in group.elements]
        for number, name in zip(numbers, names, strict=True):
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(state.tensor(name, kind), optimizer["state"][number][kind])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_losses_equal_those_of_lightning(published: tuple[Path, RunConfig], world: int) -> None:
    folder = published[0]
    expected = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    losses = [step["train_loss"] for step in events(folder / f"resumed{world}", "step")]
    assert len(losses) == MORE
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_other_rates_are_refused_until_allowed(published: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, config = published
    changed = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"base_lr": 2e-4})})
    with pytest.raises(RefusedError, match=r"group head: lr 3.99007\d+e-05, by this run's schedule"):
        import_lightning(folder / "run.ckpt", tmp_path / "out", changed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("targets", ("pm25", "pm10", "nh3", "no2", "co", "o3")),
        ("variables", ("v", "u", *INPUT_VARIABLES[2:])),
    ],
)
def test_other_inputs_and_targets_of_equal_shape_are_refused(
    tiny_config: TinyConfig, tmp_path: Path, key: str, names: tuple[str, ...]
) -> None:
    config = tiny_config(data={key: list(names)})
    with pytest.raises(RefusedError, match=rf"data\.{key}: published .*; in this run {', '.join(names)}"):
        import_lightning(tmp_path / "run.ckpt", tmp_path / "out", config)
    allowed = Allowed((f"data.{key}",))
    with pytest.raises(ValueError, match=r"run\.ckpt does not exist"):
        import_lightning(tmp_path / "run.ckpt", tmp_path / "out", config, allowed=allowed)


def test_the_weather_to_come_is_another_input(tiny_config: TinyConfig, tmp_path: Path) -> None:
    config = tiny_config(data={"weather_at_horizons": ["u"]})
    with pytest.raises(RefusedError, match=r"published .*; in this run .*population, u_ahead"):
        import_lightning(tmp_path / "run.ckpt", tmp_path / "out", config)


@pytest.fixture
def content(published: tuple[Path, RunConfig]) -> dict[str, Any]:
    """The file's content, to be changed."""
    found: dict[str, Any] = torch.load(published[0] / "run.ckpt", weights_only=True)
    return found


def imported(content: dict[str, Any], config: RunConfig, folder: Path, **how: Any) -> SavedState:
    torch.save(content, folder / "changed.ckpt")
    import_lightning(folder / "changed.ckpt", folder / "out", config, **how)
    return open_state(folder / "out")


def in_another_order(content: dict[str, Any], order: dict[str, str]) -> list[str]:
    """Make the groups list the tensors of one block or layer where those of another were; all names then."""
    optimizer, names = content["optimizer_states"][0], list(rename(content["state_dict"], []).values())
    listed: dict[str, list[str]] = {"others": [], "head": [], "blocks": [], "token_embeds": []}
    for name in names:
        listed.get(name.split(".")[0], listed["others"]).append(name)
    old = [name for part in listed.values() for name in part]
    pattern = "|".join(map(re.escape, order))
    new = [re.sub(rf"^({pattern})(?=\.)", lambda match: order[match[0]], name) for name in old]
    number = {name: place for place, name in enumerate(old)}
    optimizer["state"] = {place: optimizer["state"][number[name]] for place, name in enumerate(new)}
    return new


REORDERED = {
    "blocks listed backwards": {f"blocks.{i}": f"blocks.{6 - i}" for i in range(1, 6)},
    "layers of the head": {"head.0": "head.2", "head.2": "head.0"},
    "norms of a block": {"blocks.4.norm1": "blocks.4.norm2", "blocks.4.norm2": "blocks.4.norm1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REORDERED)
def test_other_order_of_equal_shapes_is_refused_until_it_is_stated(
    published: tuple[Path, RunConfig], content: dict[str, Any], tmp_path: Path, case: str
) -> None:
    order = REORDERED[case]
    names = in_another_order(content, order)
    with pytest.raises(RefusedError, match=r"(?s)equal shape.*candidates, parameters \[.*--order FILE") as no:
        imported(content, published[1], tmp_path)
    assert all(f"{moved}." in str(no.value) for moved in list(order)[:2])
    assert not (tmp_path / "out").exists()
    state = imported(content, published[1], tmp_path, order=ParameterOrder(True, tuple(names)))
    assert not list(diff_states(state, open_state(published[0] / "imported")))


@pytest.mark.slow
def test_parameter_names_in_the_optimizer_determine_the_order(
    published: tuple[Path, RunConfig], content: dict[str, Any], tmp_path: Path
) -> None:
    names = in_another_order(content, REORDERED["blocks listed backwards"])
    for saved in content["optimizer_states"][0]["param_groups"]:
        saved["param_names"] = [f"model.{names[number]}" for number in saved["params"]]
    state = imported(content, published[1], tmp_path)
    assert not list(diff_states(state, open_state(published[0] / "imported")))


@pytest.mark.slow
def test_tensors_that_only_the_file_has_are_refused_until_allowed(
    published: tuple[Path, RunConfig], content: dict[str, Any], tmp_path: Path
) -> None:
    content["state_dict"]["china_mask"] = torch.ones(8, 16)
    with pytest.raises(RefusedError, match="china_mask is in the file, but not in this run"):
        imported(content, published[1], tmp_path)
    allowed = Allowed(unexpected=("china_mask",))
    state = imported(content, published[1], tmp_path, allowed=allowed)
    assert not list(diff_states(state, open_state(published[0] / "imported")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "it lacks optimizer_states, epoch, global_step"),
        (
            {"state_dict": {}, "optimizer_states": [], "epoch": 0, "global_step": 0},
            "must have exactly one optimizer",
        ),
        ([], "it lacks state_dict"),
    ],
)
def test_file_without_optimizer_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message):
        read_lightning(tmp_path / "x.ckpt")
