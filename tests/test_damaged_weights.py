"""Files of weights, and small files of a run, changed at random: read, or refused in our own words."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from aqtopo.checkpoint.files import describe_file, write_tensors
from aqtopo.checkpoint.manifest import WEIGHTS_FILE
from aqtopo.checkpoint.tags import CHECKPOINTS, HISTORY, POINTER, check_pointer, list_tags, next_tag
from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.distributed.deadlines import STACKS
from aqtopo.evaluation.linear import LinearBaseline, Predictors
from aqtopo.inference.card import CARD_FILE, MODEL_FILE, STATIC_FILE
from aqtopo.inference.export import CONFIG_KEY, export_model
from aqtopo.inference.load import load_model
from aqtopo.lightning.checkpoint import read_lightning
from aqtopo.lightning.match import ParameterOrder, rename
from aqtopo.model import Terrain, build_model
from aqtopo.refusal import RefusedError
from aqtopo.report.history import read_alphas, read_history
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_state import read_run_state
from aqtopo.training.initial_weights import initial_weights
from tests.conftest import SaveUntrained, tiny_tree
from tests.damage import (  # noqa: F401  (the tests run here)
    FuzzTarget,
    KnownFault,
    test_changed_files,
    test_known_faults,
    test_other_kinds_of_files,
)
from tests.test_damaged_json import sample_lines


def exported_model(folder: Path, store: Path, save: SaveUntrained) -> FuzzTarget:
    config = RunConfig.model_validate(tiny_tree(store, folder / "run"))
    export_model(save(config), "best", folder / "model", None)
    names = (MODEL_FILE, STATIC_FILE)
    card = json.loads((folder / "model" / CARD_FILE).read_text(encoding="utf-8"))
    card["config"]["data"]["store"] = "elsewhere.zarr"

    def read() -> object:
        files = [folder / "model" / name for name in names]
        records = {path.name: describe_file(path) for path in files if path.is_file()}
        card["files"] |= {name: {"size": r.size, "sha256": r.sha256} for name, r in records.items()}
        (folder / "model" / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
        return load_model(folder / "model")

    return FuzzTarget([folder / "model" / name for name in names], read)


def _lightning_content() -> dict[str, object]:
    state = {
        n: {"step": torch.tensor(5.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)} for n in (0, 1)
    }
    group = {
        "params": [0, 1],
        "lr": 0.1,
        "weight_decay": 0.0,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "amsgrad": False,
    }
    weights = {"net.a": torch.ones(2), "net.pos_embed": torch.ones(1, 8, 4)}
    return {
        "state_dict": weights,
        "optimizer_states": [{"state": state, "param_groups": [group]}],
        "epoch": 1,
        "global_step": 5,
    }


def _starts_from(path: Path, store: Path) -> Callable[[], object]:
    tree = tiny_tree(store, path.parent / "run")
    tree["training"] |= {"initial_weights": str(path), "fresh_weights": ["*"]}
    config = RunConfig.model_validate(tree)
    model = build_model(config, Terrain.flat(config.data.grid))
    return lambda: initial_weights(config, model)


def lightning(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    path = folder / "last.ckpt"
    content = _lightning_content()
    content["state_dict"]["net.head.0.bias"] = torch.ones(32)  # type: ignore[index]
    torch.save(content, path)
    start = _starts_from(path, store)
    return FuzzTarget([path], lambda: (read_lightning(path), start()))


def initial_safetensors(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    config = RunConfig.model_validate(tiny_tree(store, folder / "run"))
    weights = build_model(config, Terrain.flat(config.data.grid)).state_dict()
    paths = [folder / "plain.safetensors", folder / "described.safetensors"]
    for path, metadata in zip(paths, ({}, {CONFIG_KEY: config.to_json()}), strict=True):
        write_tensors(path, weights, metadata)
    reads = [_starts_from(path, store) for path in paths]
    return FuzzTarget(paths, lambda: [read() for read in reversed(reads)])


def regression(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    copy = Path(shutil.copytree(store, folder / "store.zarr"))
    config = RunConfig.model_validate(tiny_tree(copy, folder / "run"))
    baseline = LinearBaseline(open_store(copy), config.data, Predictors(("pm25",)))

    def read() -> object:
        fitted = baseline.fit_once(folder / "run")
        return fitted.described

    read()
    return FuzzTarget(list(folder.rglob("linear-*.safetensors")), read)


def order_of_parameters(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    path = folder / "names.txt"
    path.write_text("model.a\nmodel.b\n", encoding="utf-8")
    return FuzzTarget([path], lambda: rename(ParameterOrder.parse(str(path)).names, []))


def notes_of_a_run(folder: Path, store: Path, save: SaveUntrained) -> FuzzTarget:
    config = RunConfig.model_validate(tiny_tree(store, folder / "run"))
    run_dir = save(config)
    (tag,) = list_tags(run_dir)
    lines = [json.dumps(line) for line in sample_lines() if line.get("event") != "validation"]
    (run_dir / METRICS_FILE).write_text("\n".join([*lines, ""]), encoding="utf-8")
    (run_dir / STACKS).mkdir()
    notes = {
        tag.folder(run_dir) / WEIGHTS_FILE: None,
        run_dir / CHECKPOINTS / POINTER: f"{tag.name}\n",
        run_dir / CHECKPOINTS / HISTORY: f"{tag.name}\n",
        run_dir / STACKS / "rank0.txt": "it stops\n",
    }
    for path, text in notes.items():
        if text is not None:
            path.write_text(text, encoding="utf-8")

    def read() -> object:
        with suppress(RefusedError):
            check_pointer(run_dir)
        error, alphas = (
            read_run_state(run_dir).error,
            read_alphas(run_dir, config, read_history(run_dir / METRICS_FILE)),
        )
        return next_tag(tag, run_dir), error, alphas

    return FuzzTarget(list(notes), read)


TARGETS: dict[str, Callable[[Path, Path, SaveUntrained], FuzzTarget]] = {
    target.__name__: target
    for target in (
        exported_model, lightning, initial_safetensors, regression, order_of_parameters, notes_of_a_run,
    )
}  # fmt: skip


FIXTURES = ("tiny_store", "save_untrained")


KNOWN_FAULTS: list[KnownFault] = [
    ("exported_model", "static.safetensors", lambda content: content.replace(b'"lat"', b'"lot"')),
    ("notes_of_a_run", "rank0.txt", lambda _: b"\xff"),
]
