"""Ranks that cannot write: all are told the same, and the states before it are untouched."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.checkpoint.tags import CHECKPOINTS, list_tags
from tests.conftest import NO_RIGHT

from .conftest import Job, run_jobs_in

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("saved")]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A file system of 1 MiB, enough for some states of the toy; None without the right to mount one."""
    folder = tmp_path_factory.mktemp("small")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def run_dir(small_disk: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_disk or tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def told(
    run_dir: Path, small_disk: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, str]]:
    """Errors of each of two ranks, by the trouble in which they saved."""
    out = tmp_path_factory.mktemp("told")
    troubles = ["limited", "lost shard", "no pointer", *(["full", "read-only"] if small_disk else [])]
    job = Job(
        2, "save_in_trouble", {"folder": str(run_dir), "troubles": troubles, "out": str(out)}, file="saving"
    )
    (ended,) = run_jobs_in(out / "jobs", [job])
    assert ended.codes == [0, 0], ended.output
    return [json.loads((out / f"told{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize(
    ("trouble", "texts"),
    [
        ("limited", ("rank 1: zero_pp_rank_1", "File too large")),
        ("lost shard", ("rank 0: ", "saved by 2 ranks, but its manifest lists 1 shards, of ranks [0]")),
        ("full", ("rank 0: ", "No space left on device")),
        ("read-only", ("rank 0: ", "Read-only file system")),
    ],
)
def test_rank_that_cannot_write_fails_the_save_on_all(
    told: list[dict[str, str]], small_disk: Path | None, trouble: str, texts: tuple[str, ...]
) -> None:
    if trouble in ("full", "read-only") and small_disk is None:
        pytest.skip(NO_RIGHT)
    assert told[0][trouble] == told[1][trouble]
    for text in ("could not be saved", *texts):
        assert text in told[0][trouble]


def test_renamed_state_is_saved_even_if_the_pointer_update_fails(told: list[dict[str, str]]) -> None:
    assert "no pointer" not in told[0]


def test_states_before_and_after_failed_saves_are_undamaged(
    told: list[dict[str, str]], run_dir: Path
) -> None:
    tags = list_tags(run_dir)
    assert [(tag.step, tag.number) for tag in tags] == [(20, 3)]
    assert (run_dir / CHECKPOINTS / "history").read_text(encoding="utf-8").split() == [
        f"epoch00-step{step:06d}" for step in (5, 8, 20)
    ]
    verify_state(open_state(run_dir))
    names = {path.name for path in (run_dir / CHECKPOINTS).iterdir()}
    assert names == {tag.name for tag in tags} | {"latest", "history"}
