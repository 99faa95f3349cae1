"""A full disk and a small /dev/shm, as real file systems of a few MiB."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.config import RunConfig
from tests.conftest import NO_RIGHT
from tests.events import events

pytestmark = pytest.mark.slow

TinyConfig = Callable[..., RunConfig]


def write_config(config: RunConfig, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    return path


def train_and_fill(config: RunConfig, disk: Path, step: int) -> tuple[int, str]:
    """Train, and fill the disk after a step; return the exit code and what was said, on one line."""
    command = [sys.executable, "-m", "aqtopo", "train", write_config(config, disk.parent)]
    run_dir = Path(config.training.run_dir)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        while run.poll() is None:
            if (run_dir / "metrics.jsonl").exists() and len(events(run_dir, "step")) >= step:
                (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
                break
            time.sleep(0.01)
        said, _ = run.communicate(timeout=240)
    return run.returncode, " ".join(said.split())


def test_a_disk_that_is_full_in_training_is_named_with_step_and_last_complete_state(
    tiny_config: TinyConfig, small_disk: Path
) -> None:
    training = {"run_dir": str(small_disk / "run"), "validate_every": 4}
    code, said = train_and_fill(tiny_config(training=training), small_disk, step=7)
    assert code == 1, said
    assert "Traceback" not in said
    assert f"{small_disk}/run/checkpoints/epoch00-step0000" in said
    assert "could not be saved: rank 0: " in said
    assert "No space left on device" in said
    last = said.partition("The last complete state is ")[2].partition(". Remove the cause and repeat")[0]
    verify_state(open_state(small_disk / "run" / "checkpoints" / last))


def test_a_log_that_cannot_be_written_is_named_with_the_step(
    tiny_config: TinyConfig, small_disk: Path
) -> None:
    training = {"run_dir": str(small_disk / "run"), "validate_every": 48}
    code, said = train_and_fill(tiny_config(training=training), small_disk, step=3)
    assert code == 1, said
    assert "Traceback" not in said
    assert f"{small_disk}/run/metrics.jsonl could not be written at step " in said
    assert (
        "(No space left on device). No state is saved yet. Remove the cause and repeat the command." in said
    )


@pytest.mark.parametrize("command", ["doctor", "train"])
def test_too_little_shared_memory_is_found_by_doctor_as_by_train(
    tiny_config: TinyConfig, tmp_path: Path, command: str
) -> None:
    config = tiny_config(data={"workers": 2, "prefetch": 60}, training={"validate_every": 4})
    path = write_config(config, tmp_path)
    script = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} -m aqtopo {command} {path}"
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip(NO_RIGHT)
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=240
    )
    said = " ".join(ended.stderr.split())
    assert ended.returncode == 2, said
    assert "The loader processes need 3 MiB of shared memory, and less is free" in said
    assert "Traceback" not in said
    assert not Path(config.training.run_dir).exists()
