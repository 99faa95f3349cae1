"""A payload planted in each kind of file that each command reads: refused by its name, and never run."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aqtopo.checkpoint.files import append_checksum, describe_file, remove_checksum
from aqtopo.checkpoint.manifest import MANIFEST_FILE, WEIGHTS_FILE, read_manifest, write_manifest
from aqtopo.checkpoint.shards import MODEL_STATES
from aqtopo.checkpoint.tags import CHECKPOINTS, POINTER, STATE_FILE, last_tag
from aqtopo.checkpoint.universal import (
    LATEST,
    OPTIMIZER_STATE,
    open_universal,
    universal_folder,
)
from aqtopo.cli.main import main
from aqtopo.config import RunConfig
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.lightning.checkpoint import read_lightning
from aqtopo.run_directory.run_file import CONFIG_FILE

from .conftest import Ended, Job, run_jobs_in, tag_folder
from .test_pickles import Payload

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]

SHARD = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
TENSORS = tuple(f"zero/first.weight/{kind}.pt" for kind in ("fp32", "exp_avg", "exp_avg_sq"))
STEP = "zero/first.weight/step.pt"
SHARDED = (MANIFEST_FILE, WEIGHTS_FILE, SHARD, MODEL_STATES)
UNIVERSAL = (MANIFEST_FILE, WEIGHTS_FILE, MODEL_STATES, OPTIMIZER_STATE, STEP, *TENSORS)

READ: dict[tuple[str, str], tuple[str, ...]] = {
    ("inspect", "sharded"): (MANIFEST_FILE, SHARD),
    ("inspect", "universal"): (MANIFEST_FILE, *TENSORS),
    ("verify", "sharded"): SHARDED,
    ("verify", "universal"): UNIVERSAL,
    ("convert", "sharded"): (MANIFEST_FILE, SHARD, MODEL_STATES),
    ("diff", "sharded"): (MANIFEST_FILE, SHARD),
    ("diff", "universal"): (MANIFEST_FILE, *TENSORS),
    ("export", "sharded"): (MANIFEST_FILE, WEIGHTS_FILE, SHARD),
    ("export", "universal"): (MANIFEST_FILE, WEIGHTS_FILE, TENSORS[0]),
}
"""Files that each command parses, by layout; it hashes or ignores the others."""

CASES = [(command, layout, name) for (command, layout), names in READ.items() for name in names]

Type = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """`typed("checkpoint", "ls", run)`: exit code and everything that `aqtopo checkpoint ls run` wrote."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["aqtopo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return int(ending.value.code or 0), " ".join((output.out + output.err).split())

    return run


def plant(folder: Path, name: str, proof: Path) -> None:
    """Put a payload into a file and update its hash in the manifest, as an attacker would."""
    (folder / name).unlink()  # it may be one file with another form's
    if name.endswith(".pt"):
        torch.save({"param": Payload(proof), "optimizer_state_dict": Payload(proof)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Payload(proof)))
    if name != MANIFEST_FILE:
        manifest = read_manifest(folder)
        if name in manifest.files:
            files = manifest.files | {name: describe_file(folder / name)}
            write_manifest(manifest.model_copy(update={"files": files}), folder)


@pytest.mark.parametrize(("command", "layout", "name"), CASES)
def test_commands_refuse_a_planted_pickle(
    run_dir: Path, tmp_path: Path, typed: Type, command: str, layout: str, name: str
) -> None:
    tag, other, proof = tag_folder(run_dir), tag_folder(run_dir, 6), tmp_path / "proof"
    folder = tag if layout == "sharded" else universal_folder(tag)
    plant(folder, name, proof)
    more = {"diff": [other], "convert": [tmp_path / "out"], "export": [tmp_path / "out"]}.get(command, [])
    code, text = typed("checkpoint", command, folder, *more)
    assert code in (2, 3), text
    assert Path(name).name in text
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


def test_convert_refuses_a_parameter_whose_name_leads_elsewhere(
    run_dir: Path, tmp_path: Path, typed: Type
) -> None:
    path, victim = tag_folder(run_dir) / MANIFEST_FILE, tmp_path / "victim" / "owned"
    victim.parent.mkdir()
    text = remove_checksum(path.read_text(encoding="utf-8"))
    path.write_text(append_checksum(text.replace("first.weight", str(victim))), encoding="utf-8")
    code, text = typed("checkpoint", "convert", tag_folder(run_dir), tmp_path / "out")
    assert (code, [*victim.parent.iterdir()]) == (3, [])
    assert "manifest.json is damaged" in text


@pytest.mark.parametrize(
    ("name", "note"),
    [(MANIFEST_FILE, "manifest.json is damaged"), (STATE_FILE, "state.json does not describe a saved state")],
)
def test_ls_marks_a_state_with_a_planted_pickle_incomplete(
    run_dir: Path, tmp_path: Path, typed: Type, name: str, note: str
) -> None:
    plant(tag_folder(run_dir), name, tmp_path / "proof")
    code, text = typed("checkpoint", "ls", run_dir, "--json")
    assert code == 0
    row = next(row for row in json.loads(text) if row["name"] == tag_folder(run_dir).name)
    assert not row["complete"]
    assert note in row["note"]
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("command", ["verify", "inspect"])
@pytest.mark.parametrize("content", [b"", b"../../elsewhere", b"payload"])
def test_invalid_latest_universal_is_refused(
    run_dir: Path, tmp_path: Path, typed: Type, command: str, content: bytes
) -> None:
    folder, payload = universal_folder(tag_folder(run_dir)).parent, pickle.dumps(Payload(tmp_path / "proof"))
    (folder / LATEST).write_bytes(payload if content == b"payload" else content)
    code, text = typed("checkpoint", command, folder)
    assert code == 3
    assert f"{LATEST} names" in text
    assert not (tmp_path / "proof").exists()


def test_newest_state_is_inspected_if_the_pointer_is_invalid(
    run_dir: Path, tmp_path: Path, typed: Type
) -> None:
    (run_dir / CHECKPOINTS / POINTER).write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    code, text = typed("checkpoint", "inspect", run_dir)
    assert code == 0
    assert tag_folder(run_dir, 6).name in text
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("key", ["callbacks", "hyper_parameters", "state_dict", "optimizer_states"])
def test_import_lightning_refuses_a_planted_pickle(
    tmp_path: Path, tiny_config: Callable[..., RunConfig], typed: Type, key: str
) -> None:
    (tmp_path / "config.json").write_text(tiny_config().to_json(), encoding="utf-8")
    content = {"state_dict": {}, "optimizer_states": [{}], "epoch": 0, "global_step": 0}
    torch.save(content | {key: Payload(tmp_path / "proof")}, tmp_path / "x.ckpt")
    files = tmp_path / "x.ckpt", tmp_path / "out", "--config", tmp_path / "config.json"
    code, text = typed("checkpoint", "import-lightning", *files)
    assert code == 3
    assert "x.ckpt holds more than data" in text
    assert not (tmp_path / "proof").exists()


@pytest.mark.filterwarnings("ignore:a saved state is skipped")
@pytest.mark.parametrize("command", ["evaluate", "forecast"])
@pytest.mark.parametrize("name", [CONFIG_FILE, STATE_FILE, MANIFEST_FILE, WEIGHTS_FILE])
def test_evaluate_and_forecast_refuse_a_planted_pickle(
    untrained_run: Path, tmp_path: Path, typed: Type, command: str, name: str
) -> None:
    tag = last_tag(untrained_run)
    assert tag is not None
    folder, proof = tag.folder(untrained_run), tmp_path / "proof"
    if name == CONFIG_FILE:
        (untrained_run / name).write_bytes(pickle.dumps(Payload(proof)))
    else:
        plant(folder, name, proof)
    more = [tmp_path / "out.nc", "--init", "2018-01-03T00"] if command == "forecast" else []
    code, text = typed(command, untrained_run, *more)
    assert code in (2, 3), text
    assert name in text
    assert not proof.exists()


RESUMED = {
    "sharded": (MANIFEST_FILE, WEIGHTS_FILE, SHARD, STATE_FILE, POINTER, CONFIG_FILE),
    "universal": (OPTIMIZER_STATE, TENSORS[1]),
}
"""One file for each way in which `aqtopo train` reads any; the rest it reads as `convert` and `verify` do."""


@pytest.fixture(scope="session")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Path
) -> dict[tuple[str, str], tuple[Path, Ended]]:
    """Result of `aqtopo train` with a payload in each kind of file, and the file that it would write."""
    folder = tmp_path_factory.mktemp("planted")
    config = _config(tiny_store, folder / "run")
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    train = ["train", str(folder / "config.json")]
    (first,) = run_jobs_in(folder / "first", [Job(1, "aqtopo", {"arguments": [*train, "--stop-after", "2"]})])
    assert first.codes == [0], first.output
    jobs = {}
    for layout, names in RESUMED.items():
        for name in names:
            run_dir = folder / f"{layout}-{name.replace('/', '-')}"
            shutil.copytree(folder / "run", run_dir)
            _plant_in_run(run_dir, layout, name, folder / run_dir.name / "proof")
            more = ["--set", f"training.run_dir={run_dir}", "--stop-after", "3"]
            jobs[layout, name] = run_dir, Job(1, "aqtopo", {"arguments": [*train, *more]})
    ended = run_jobs_in(folder / "jobs", [job for _, job in jobs.values()])
    return {case: (path / "proof", end) for (case, (path, _)), end in zip(jobs.items(), ended, strict=True)}


def _config(tiny_store: Path, run_dir: Path) -> RunConfig:
    """Small, and its tensors called as those of the toy."""
    tree: dict[str, Any] = {
        "name": "planted",
        "data": {
            "store": str(tiny_store),
            "grid": [8, 16],
            "train_years": [2016],
            "validation_years": [2017],
            "test_years": [2018],
            "validation_stride_hours": 240,
            "workers": 0,
        },
        "model": {"dim": 16, "depth": 1, "heads": 2, "regions": [2, 2]},
        "optimizer": {"base_lr": 1e-3},
        "training": {"run_dir": str(run_dir), "epochs": 1, "nodes": 1, "ranks_per_node": 1},
        "checkpoint": {"every_steps": 1, "keep_every_steps": 1},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 2},
        },
    }
    return RunConfig.model_validate(tree)


def _plant_in_run(run_dir: Path, layout: str, name: str, proof: Path) -> None:
    tag = last_tag(run_dir)
    assert tag is not None
    folder = tag.folder(run_dir)
    if layout == "universal":
        folder = open_universal(folder, SINGLE_RANK).folder
        name = name.replace("first.weight", "head.0.weight")
    outside = {POINTER: run_dir / CHECKPOINTS, CONFIG_FILE: run_dir}
    if name in outside:
        (outside[name] / name).write_bytes(pickle.dumps(Payload(proof)))
    else:
        plant(folder, name, proof)


@pytest.mark.parametrize(("layout", "name"), [(where, name) for where in RESUMED for name in RESUMED[where]])
def test_train_refuses_a_planted_pickle(
    resumed: dict[tuple[str, str], tuple[Path, Ended]], layout: str, name: str
) -> None:
    proof, ended = resumed[layout, name]
    assert not proof.exists()
    assert "Traceback" not in ended.output
    if name == CONFIG_FILE:  # the run's own is compared with the manifest's, and written anew
        return
    # A universal form that is damaged is converted again from the shards.
    assert ended.codes[0] in ((2, 3) if layout == "sharded" else (0, 3)), ended.output
    assert Path(name).name in ended.text


@pytest.mark.parametrize(
    "entry",
    [
        {"state_dict": None},
        {"state_dict": {"a": 1}},
        {"optimizer_states": None},
        {"optimizer_states": [None]},
        {"optimizer_states": [{}]},
        {"optimizer_states": [{"state": {0: {"exp_avg": 1}}, "param_groups": []}]},
        {"optimizer_states": [{"state": {}, "param_groups": [{"params": [0]}]}]},
    ],
    ids=str,
)
def test_a_lightning_checkpoint_of_wrong_types_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    content = {"state_dict": {}, "optimizer_states": [{"state": {}, "param_groups": []}]}
    content |= {"epoch": 0, "global_step": 0} | entry
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt cannot be resumed from: "):
        read_lightning(tmp_path / "x.ckpt")
