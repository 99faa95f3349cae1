"""JSON files of runs, exports and ablations, changed at random: read, or refused in our own words."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.ablation.plan import Description
from aqtopo.ablation.results_file import RESULTS_FILE, read_results
from aqtopo.checkpoint.files import append_checksum
from aqtopo.checkpoint.manifest import MANIFEST_FILE, read_manifest
from aqtopo.checkpoint.tags import STATE_FILE, Tag, best_tag, list_tags, read_tag
from aqtopo.config import RunConfig, load_config
from aqtopo.config.record import read_record
from aqtopo.evaluation.results import SCORES_FILE, read_score_file, scores_from_record
from aqtopo.inference.card import EARLIER_CARD_FILE, EARLIER_MODEL_FILE, STATIC_FILE, read_card
from aqtopo.planning.machines import find_node_type
from aqtopo.report.history import preference_rows, read_alphas, read_history
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_file import RUN_FILE, read_run_file
from aqtopo.run_directory.run_state import read_run_state
from tests.changes import Json, as_text, changed, damaged
from tests.cli.test_export import write_made_scores
from tests.conftest import make_manifest
from tests.damage import assert_read_or_refused, fuzzed

NAME, TIME = "epoch00-step000007-val0.5000", "2026-11-22T06:13:11+00:00"
TAG = Tag(epoch=0, step=7, step_in_epoch=7, val_loss=0.5, train_loss=0.6, number=1)


def sample_config() -> Json:
    return json.loads(Path("ds_configs/demo_weather_cpu.json").read_text(encoding="utf-8"))


def sample_manifest() -> Json:
    tensor = {"name": "a.b", "shape": [2, 3], "dtype": "float32"}
    group = {"name": "all", "hyperparameters": {"lr": 0.1, "betas": [0.9, 0.999]}, "next_lr": 0.1}
    tree = json.loads(make_manifest(NAME, next_lrs={"all": 0.1}).model_dump_json(by_alias=True))
    changes = {"groups": [group | {"parameters": [tensor]}], "optimizer_steps": {"all": 7.0}}
    files = {"weights.safetensors": {"size": 9, "sha256": ["0" * 64]}}
    return tree | changes | {"files": files, "tied": {"c": "a.b"}}


def sample_run() -> Json:
    return {"started": TIME, "versions": {"torch": "2.13.0", "triton": None}, "world_size": 2, "name": "x"}


def sample_ablation() -> Json:
    factors = {"model.wind_order": ["true", "false"]}
    return {"config": sample_config(), "factors": factors, "seeds": [0, 1], "versions": {}, "written": TIME}


def sample_results() -> Json:
    values = {"val_loss": [0.2], "overall_rmse": [0.5], "alpha": [None]}
    scores = {"change": -2.0, "days_low": -3.0, "days_high": -1.0, "seeds_low": None, "seeds_high": None}
    return {
        "format_version": 2,
        "run": "tiny",
        "config_digest": "0",
        "store": "x.zarr",
        "factors": {"model.wind_order": [True, False]},
        "seeds": [0],
        "starts": "equal",
        "variants": [{"variant": name, "folder": name, **values} for name in ("a", "b")],
        "changes": [
            {"contrast": "a (not b)", "score": score, "shown": True, **scores}
            for score in ("all", "pm25 12 h")
        ],
        "created": TIME,
        "machine": {"platform": "Linux", "cores": 2},
        "versions": {},
    }


def sample_card() -> Json:
    years = {"train_years": [2016], "validation_years": [2017], "test_years": [2018]}
    ranges = {"cells": [8, 16], "lat_range": [20.0, 40.0], "lon_range": [80.0, 120.0]}
    data = {"source": "x", "simulated": True, "digest": "0", **years, **ranges}
    normal = {"kind": "store", "statistics_years": [2016], "mean": {"u": 0.0}, "std": {"u": 1.0}}
    return {
        "name": "tiny",
        "description": "",
        "exported": TIME,
        "state": asdict(TAG),
        "tag": NAME,
        "data": data,
        "normalization": normal,
        "scores": None,
        "config": sample_config(),
        "config_digest": "0",
        "trained_with": {},
        "exported_with": {"aqtopo": "0.1.0"},
        "files": {name: {"size": 9, "sha256": ["0" * 64]} for name in (EARLIER_MODEL_FILE, STATIC_FILE)},
    }


def sample_machine() -> Json:
    peaks = {"fp32": 1.0, "bf16": 2.0, "fp16": 2.0}
    speeds = {"node_network_gb_s": 9.0, "inside_network_gb_s": 9.0, "storage_gb_s": 9.0, "memory_tb_s": 1.0}
    return {"name": "x", "gpus_per_node": 4, "memory_gb": 64.0, "tflops": peaks, **speeds}


def sample_lines() -> list[Json]:
    return [
        {"event": "start", "time": TIME, "total_steps": 9, "world_size": 2, "slurm": {"job": "1"}},
        {"event": "resume", "time": TIME, "source": "x", "line": "verified", "seconds": {"read": 0.1}},
        {"event": "step", "time": TIME, "step": 1, "epoch": 0, "train_loss": 0.5, "lr": {"all": 0.1}},
        {"event": "step", "time": TIME, "step": 2, "epoch": 0, "train_loss": 0.4, "lr": {"all": 0.1}},
        {"event": "validation", "time": TIME, "step": 2, "epoch": 0, "val_loss": 0.4, "alpha": {"a": [1.0]}},
        {"event": "loss_after_resume", "time": TIME, "running": 0.5, "saved": 0.5, "jump": False},
        {"event": "stop", "time": TIME, "reason": "all epochs done"},
    ]


def read_scores(folder: Path) -> None:
    content = read_score_file(folder)
    scores_from_record(content)


RECORDS: dict[str, tuple[Callable[[], Json], str, Callable[[Path], object]]] = {
    "config": (sample_config, "config.json", lambda folder: load_config(folder / "config.json")),
    "run": (sample_run, RUN_FILE, read_run_file),
    "ablation": (sample_ablation, "a.json", lambda folder: read_record(folder / "a.json", Description, "x")),
    "results": (sample_results, RESULTS_FILE, read_results),
    "card": (sample_card, EARLIER_CARD_FILE, read_card),
    "machine": (sample_machine, "m.json", lambda folder: find_node_type(str(folder / "m.json"), 1)),
}


@pytest.mark.parametrize("kind", RECORDS)
@fuzzed
@given(data=st.data())
def test_records(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    sample, name, read = RECORDS[kind]
    (tmp_path / name).write_bytes(data.draw(damaged(as_text(data.draw(changed(sample()))))))
    assert_read_or_refused(lambda: read(tmp_path))


@pytest.mark.parametrize("kind", RECORDS)
def test_undamaged_records_are_read(tmp_path: Path, kind: str) -> None:
    sample, name, read = RECORDS[kind]
    (tmp_path / name).write_bytes(as_text(sample()))
    assert read(tmp_path) is not None


@fuzzed
@given(data=st.data())
def test_scores(tmp_path: Path, data: st.DataObject) -> None:
    write_made_scores(tmp_path, NAME)
    tree = json.loads((tmp_path / SCORES_FILE).read_text(encoding="utf-8"))
    (tmp_path / SCORES_FILE).write_bytes(data.draw(damaged(as_text(data.draw(changed(tree))))))
    assert_read_or_refused(lambda: read_scores(tmp_path))


@fuzzed
@given(data=st.data())
def test_manifest_and_state_with_a_right_checksum(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "checkpoints" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    for name, tree in ((MANIFEST_FILE, sample_manifest()), (STATE_FILE, asdict(TAG))):
        text = append_checksum(json.dumps(data.draw(changed(tree)), indent=1))
        (folder / name).write_bytes(data.draw(damaged(text.encode(errors="surrogatepass"))))
    assert_read_or_refused(lambda: read_manifest(folder))
    assert_read_or_refused(lambda: read_tag(folder / STATE_FILE))
    assert_read_or_refused(lambda: (list_tags(tmp_path), best_tag(tmp_path)))


def test_undamaged_manifest_and_state_are_read(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    for name, tree in ((MANIFEST_FILE, sample_manifest()), (STATE_FILE, asdict(TAG))):
        (folder / name).write_text(append_checksum(json.dumps(tree, indent=1)), encoding="utf-8")
    assert list(read_manifest(folder).parameters) == ["a.b"]
    assert read_tag(folder / STATE_FILE) == TAG


@fuzzed
@given(data=st.data())
def test_metrics(tmp_path: Path, data: st.DataObject) -> None:
    lines = data.draw(changed(sample_lines()))
    text = b"".join(
        json.dumps(line).encode() + b"\n" for line in (lines if isinstance(lines, list) else [lines])
    )
    (tmp_path / METRICS_FILE).write_bytes(data.draw(damaged(text)))
    assert_read_or_refused(lambda: read_run_state(tmp_path))
    assert_read_or_refused(lambda: _read_curves(tmp_path))


def _read_curves(run_dir: Path) -> object:
    config = RunConfig.model_validate(sample_config())
    history = read_history(run_dir / METRICS_FILE)
    return read_alphas(run_dir, config, history), preference_rows(history)
