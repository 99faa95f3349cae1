import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aqtopo.config import RunConfig
from aqtopo.distributed.launch import read_launch
from aqtopo.run_directory.batch_job import JOB_DIR
from aqtopo.training.engine import _cause
from aqtopo.training.kernel_check import kernel_problem
from aqtopo.training.preflight import Checkup, RankFindings, _folder_problems, _problems, _stage_problems
from aqtopo.training.prepare import NEVER, ResumeOptions, prepare


def findings(*facts: dict[str, str], clocks: tuple[float, ...] = ()) -> list[RankFindings]:
    return [
        RankFindings(f"nid{rank}", own, [], clocks[rank] if clocks else 0.0) for rank, own in enumerate(facts)
    ]


def test_a_difference_names_rank_host_and_both_values() -> None:
    usual = {"version of torch": "2.13", "data": "a" * 64}
    compared = _problems(findings(usual, usual, usual | {"data": "b" * 64}), usual)
    assert compared == ["data: rank 2 on nid2 has bbbbbbbbbbbb; 2 rank(s) have aaaaaaaaaaaa"]


def test_a_clock_that_is_off_and_a_rank_s_own_problem_are_named() -> None:
    ranks = [
        *findings({}, {}, {}, clocks=(100.0, 100.5, 130.0)),
        RankFindings("nid3", {}, ["no disk"], 101.0),
    ]
    assert _problems(ranks, {}) == [
        "rank 3 on nid3: no disk",
        "clocks differ from the median: rank 2 on nid2 +29 s",
    ]


def test_what_many_ranks_have_is_said_once() -> None:
    ranks = [
        RankFindings(f"nid{rank}", {"data": str(rank)}, ["no disk"], 100.0 * rank) for rank in range(400)
    ]
    said = _problems(ranks, {"data": "0"})
    assert len(said) == 3
    assert said[0].startswith("rank 0 on nid0, rank 1 on nid1, ")
    assert said[0].endswith("and 392 more: no disk")
    assert sum(map(len, said)) < 1500


def test_problems_become_one_message_of_one_rank_and_a_line_of_the_others() -> None:
    Checkup({}, [], 0.1).raise_problems(in_full=True)
    with pytest.raises(ValueError, match=r"cannot train together:\n  one\n  two"):
        Checkup({}, ["one", "two"], 0.1).raise_problems(in_full=True)
    with pytest.raises(ValueError, match=r"cannot train together: one; and 1 more, which rank 0 lists"):
        Checkup({}, ["one", "two"], 0.1).raise_problems(in_full=False)


def test_writing_and_renaming_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    assert _folder_problems(tmp_path / "to" / "come") == []
    assert list(tmp_path.iterdir()) == []
    (problem,) = _folder_problems(Path("/proc/self/run"))
    assert "cannot be written and renamed" in problem


def test_a_node_without_room_for_its_copy_of_the_data_is_a_problem(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")

    def problems(stage: str | None) -> list[str]:
        config = tiny_config(data={"stage": stage}, training={"validate_every": 8})
        return _stage_problems(prepare(config, read_launch(), ResumeOptions(NEVER)))

    assert problems(None) == []
    assert problems(str(tmp_path)) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    (problem,) = problems(str(tmp_path))
    assert f"{tmp_path} on" in problem
    assert "has 1000 bytes free, and 20 shards" in problem


def test_kernels_are_held_against_their_references() -> None:
    assert kernel_problem(2, 16, torch.device("cpu")) is None


def test_heads_that_no_kernel_takes_are_a_finding_and_not_an_end_of_this_rank_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the rules of a GPU
    problem = kernel_problem(2, 10, torch.device("cpu"))
    assert problem is not None
    assert problem.startswith("heads of 10 columns (model.dim / model.heads; with model.local_bias 16 more)")
    assert "a multiple of 16 up to 256" in problem


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernel_problem.__globals__["elevation_attention"]
    monkeypatch.setitem(
        kernel_problem.__globals__, "elevation_attention", lambda *inputs: 1.01 * right(*inputs)
    )
    problem = kernel_problem(2, 16, torch.device("cpu"))
    assert problem is not None
    assert "differ from their references by 0.0" in problem


@pytest.mark.slow
@pytest.mark.parametrize("command", ["doctor", "train"])
def test_an_optimizer_that_cannot_be_compiled_is_refused_before_the_run_starts(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, command: str
) -> None:
    config = tiny_config(optimizer={"implementation": "cpu_adam"}, training={"validate_every": 4})
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    for folder in ("programs", "job"):
        (tmp_path / folder).mkdir()
    for program in ("bash", "sh"):
        (tmp_path / "programs" / program).symlink_to(shutil.which(program) or "")
    environment = {
        "PATH": str(tmp_path / "programs"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
        JOB_DIR: str(tmp_path / "job"), "AQTOPO_DEADLINES": "preflight=60",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "aqtopo", command, tmp_path / "config.json"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    said = " ".join(ended.stderr.split())
    assert 'optimizer.implementation = "cpu_adam" needs an operation that DeepSpeed compiles' in said
    assert "ninja not being installed. Install a C++ compiler" in said
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["never"]
    assert not (tmp_path / "run").exists()


def test_the_line_of_a_failed_build_that_names_the_cause_is_shown() -> None:
    built = "Error building extension 'cpu_adam'\n[1/2] c++ -MMD\n/bin/sh: 1: c++: not found\nninja: stopped."
    assert _cause(built) == "/bin/sh: 1: c++: not found"
    assert _cause("no ninja.\nmore") == "no ninja"
