"""`aqtopo checkpoint ...` as it is typed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from aqtopo.checkpoint import inspection
from aqtopo.checkpoint.files import describe_file, load_torch, load_weights, save_torch
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, read_manifest, write_manifest
from aqtopo.checkpoint.tags import CHECKPOINTS, prune
from aqtopo.checkpoint.universal import SavedState, universal_folder
from aqtopo.cli.main import main
from aqtopo.config import CheckpointConfig

from .conftest import tag_folder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """`typed("ls", run)`: exit code, stdout and stderr of `aqtopo checkpoint ls run`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["aqtopo", "checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return int(ending.value.code or 0), output.out, " ".join(output.err.split())

    return run


def test_ls_tells_complete_from_unfinished(run_dir: Path, typed: Type) -> None:
    (run_dir / CHECKPOINTS / "epoch00-step000007.tmp").mkdir()
    code, out, _ = typed("ls", run_dir, "--json")
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["epoch00-step000005"]["complete"]
    assert rows["epoch00-step000005"]["step"] == 5
    assert rows["epoch00-step000005"]["size"] > 1000
    assert not rows["epoch00-step000007.tmp"]["complete"]
    code, out, _ = typed("ls", run_dir)
    assert "unfinished" in out
    assert "universal form" in out


def test_inspect_shows_norms_by_name(run_dir: Path, typed: Type) -> None:
    code, out, _ = typed("inspect", tag_folder(run_dir), "--json")
    shown = json.loads(out)
    truth = torch.load(run_dir / "truth.pt")["state"]  # written by the run saved last, at step 6
    code, out, _ = typed("inspect", tag_folder(run_dir, 6), "--json")
    for row in json.loads(out)["tensors"]:
        for kind, norm in row["norms"].items():
            assert norm == pytest.approx(float(truth[f"{kind} {row['name']}"].double().norm()), rel=1e-6)
    assert [group["name"] for group in shown["groups"]] == ["early", "tiny", "late"]
    assert code == 0
    assert "first.weight" in typed("inspect", run_dir)[1]


def test_without_a_gpu_stdout_holds_only_json(run_dir: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    environment.pop("DS_ACCELERATOR", None)
    command = [sys.executable, "-m", "aqtopo", "checkpoint", "verify", "--json", str(tag_folder(run_dir))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["sound"]


def test_verify_reports_sound_or_ends_with_code_3(run_dir: Path, typed: Type) -> None:
    code, out, _ = typed("verify", tag_folder(run_dir), "--json")
    assert code == 0
    assert json.loads(out)["sound"]
    (tag_folder(run_dir) / "weights.safetensors").write_bytes(b"")
    code, out, err = typed("verify", tag_folder(run_dir), "--json")
    assert code == 3
    assert not json.loads(out)["sound"]
    assert "weights.safetensors: 0 bytes" in err


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("fp32", float("nan"), "first.weight fp32: 1 values are not finite"),
        ("exp_avg_sq", -1.0, "first.weight exp_avg_sq: a second moment is negative"),
        ("fp32", 0.5, "first.weight: differs from the weight in weights.safetensors"),
    ],
)
def test_verify_finds_invalid_values_with_correct_hashes(
    run_dir: Path,
    typed: Type,
    kind: str,
    value: float,
    text: str,
) -> None:
    folder, name = universal_folder(tag_folder(run_dir)), f"zero/first.weight/{kind}.pt"
    tensor = load_torch(folder / name)["param"].clone()
    tensor[0, 0] = value
    (folder / name).unlink()
    save_torch({"param": tensor}, folder / name)
    manifest = read_manifest(folder)
    files = manifest.files | {name: describe_file(folder / name)}
    write_manifest(manifest.model_copy(update={"files": files}), folder)
    code, _, err = typed("verify", folder)
    assert code == 3
    assert text in err


def test_convert_writes_a_bitwise_equal_copy(
    run_dir: Path,
    typed: Type,
    tmp_path: Path,
) -> None:
    out, other = tmp_path / "universal", tmp_path / "universal.tmp"
    other.mkdir()  # somebody else's
    assert typed("convert", tag_folder(run_dir), out)[0] == 0
    assert other.is_dir()
    assert typed("verify", out)[0] == 0
    code, said, _ = typed("diff", tag_folder(run_dir), out)
    assert code == 0
    assert "bitwise equal" in said
    code, _, err = typed("convert", tag_folder(run_dir), out)
    assert code == 2
    assert "is not overwritten" in err


def test_convert_into_the_state_itself_is_refused(run_dir: Path, typed: Type) -> None:
    tag = tag_folder(run_dir)
    code, _, err = typed("convert", tag, tag / "universal")
    assert code == 2
    assert f"is inside {tag}" in err
    assert not (tag / "universal").exists()


@pytest.mark.parametrize("universal", [False, True])
def test_export_writes_every_fp32_weight_by_name(
    run_dir: Path, typed: Type, tmp_path: Path, universal: bool
) -> None:
    tag, out = tag_folder(run_dir, 6), tmp_path / "weights.safetensors"
    other = out.with_name(f"{out.name}.tmp")
    other.write_text("somebody else's", encoding="utf-8")
    code, said, err = typed("export", universal_folder(tag) if universal else tag, out)
    assert other.read_text(encoding="utf-8") == "somebody else's"
    assert code == 0, err
    truth = torch.load(run_dir / "truth.pt")["state"]
    exported = load_weights(out)
    names = {name.removeprefix("module ") for name in truth if name.startswith("module ")}
    assert exported.keys() == names
    for name, tensor in exported.items():
        expected = truth.get(f"fp32 {name}", truth[f"module {name}"])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, msg=name)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "tag": tag.name,
        "step": "6",
        "epoch": "0",
        "val_loss": "none",
        "config_digest": "toy",
        "config": "{}",
    }
    assert "step 6" in said
    code, _, err = typed("export", tag, out)
    assert code == 2
    assert "Name a new file" in err


def test_export_refuses_a_damaged_state_and_leaves_nothing(
    run_dir: Path, typed: Type, tmp_path: Path
) -> None:
    shard = tag_folder(run_dir) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    code, _, err = typed("export", tag_folder(run_dir), tmp_path / "weights.safetensors")
    assert code == 3
    assert shard.name in err
    assert not list(tmp_path.glob("weights*"))
    code, _, err = typed("export", tag_folder(run_dir), tmp_path / "absent" / "weights.safetensors")
    assert code == 2
    assert "there is no folder" in err


def test_diff_names_the_differences(run_dir: Path, typed: Type) -> None:
    code, out, _ = typed("diff", tag_folder(run_dir, 5), tag_folder(run_dir, 6), "--json")
    names = {row["name"] for row in json.loads(out)}
    assert code == 1
    assert {"first.weight fp32", "first.weight exp_avg", "step"} <= names


def test_folder_without_state_is_named(tmp_path: Path, typed: Type) -> None:
    code, _, err = typed("inspect", tmp_path)
    assert code == 2
    assert "holds no saved state" in err


@pytest.mark.parametrize("command", ["inspect", "verify", "diff", "export"])
def test_state_that_a_command_reads_is_not_pruned(
    run_dir: Path, typed: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    tag, open_state = tag_folder(run_dir), inspection.open_state

    def opened_and_pruned(path: Path) -> SavedState:
        state = open_state(path)
        prune(run_dir, CheckpointConfig())  # what the run itself does after its next save
        return state

    monkeypatch.setattr(inspection, "open_state", opened_and_pruned)
    more = {"diff": [tag_folder(run_dir, 6)], "export": [tmp_path / "out.safetensors"]}
    code, _, err = typed(command, tag, *more.get(command, []))
    assert code == (1 if command == "diff" else 0), err
    assert tag.is_dir()
    prune(run_dir, CheckpointConfig())
    assert not tag.exists()


@pytest.mark.parametrize("command", ["verify", "convert", "export"])
def test_an_unreadable_weights_file_with_its_hash_is_refused(
    run_dir: Path, typed: Type, tmp_path: Path, command: str
) -> None:
    tag = tag_folder(run_dir)
    (tag / WEIGHTS_FILE).unlink()
    (tag / WEIGHTS_FILE).write_bytes(bytes(99))
    manifest = read_manifest(tag)
    files = manifest.files | {WEIGHTS_FILE: describe_file(tag / WEIGHTS_FILE)}
    write_manifest(manifest.model_copy(update={"files": files}), tag)
    code, _, err = typed(command, tag, *([] if command == "verify" else [tmp_path / "out"]))
    assert code == 3
    assert "weights.safetensors cannot be read" in " ".join(err.split())
    assert not (tmp_path / "out").exists()
