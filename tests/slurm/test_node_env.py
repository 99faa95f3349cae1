"""The folder for a node's compiled code is made by this user, or the job ends."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CACHES = {"miopen", "triton", "extensions", "inductor"}


def make_caches(tmp_path: Path, place: str = ".") -> tuple[int, str, Path]:
    """Run `make_node_caches`; return its exit code, its errors and the folder that it makes."""
    own = {"TMPDIR": str(tmp_path / place), "SLURM_JOB_ID": "7", "AQTOPO_JOB_DIR": str(tmp_path / "job")}
    environ = os.environ | own
    (tmp_path / "job").mkdir(exist_ok=True)
    command = ["bash", "-uc", "source slurm/node_env.sh && make_node_caches"]
    done = subprocess.run(
        command, env=environ, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr, tmp_path / "aqtopo-7"


def test_a_requeued_job_uses_the_folder_of_its_first_start(tmp_path: Path) -> None:
    for _ in range(2):
        code, errors, folder = make_caches(tmp_path)
        assert (code, errors) == (0, "")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in folder.iterdir()} == CACHES
    assert not (tmp_path / "job" / "never").exists()


def test_tasks_that_share_a_tmpdir_may_create_the_folder_at_once(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        with ThreadPoolExecutor() as pool:
            made = list(pool.map(lambda _, place=str(number): make_caches(tmp_path, place)[:2], range(4)))
        assert made == [(0, "")] * 4


@pytest.mark.parametrize("kind", ["link", "writable", "file", "foreign"])
def test_a_folder_of_somebody_else_ends_the_job(tmp_path: Path, kind: str) -> None:
    folder, planted = tmp_path / "aqtopo-7", tmp_path / "planted"
    planted.mkdir()
    if kind == "link":
        folder.symlink_to(planted)
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
    if kind == "writable":
        folder.chmod(0o770)
    if kind == "foreign":
        if os.geteuid():
            pytest.skip("not root, so a folder cannot be given to another user: run the tests as root")
        os.chown(folder, 12345, 12345)
    code, errors, _ = make_caches(tmp_path)
    assert code == 2
    assert "is not this user's own folder" in errors
    assert "aqtopo-7" in (tmp_path / "job" / "never").read_text(encoding="utf-8")
    assert not [*planted.iterdir()]


def test_a_failure_of_the_disk_may_be_retried(tmp_path: Path) -> None:
    code, errors, _ = make_caches(tmp_path, "absent")
    assert code == 1
    assert "No such file" in errors
    assert not (tmp_path / "job" / "never").exists()
