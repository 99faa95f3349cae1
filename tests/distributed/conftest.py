"""Real processes: start a command on several ranks the way each launcher does, and wait for all of them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from aqtopo.config import RunConfig
from tests.events import events

TIME_LIMIT_S = 240
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a launcher or pytest-cov's parent may have left in it."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    path = f"{BIN}:{os.environ['PATH']}"
    return inherited | {"PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | extra


def launcher_command(launcher: str, ranks: int) -> list[str]:
    """Return the words of the command before `train CONFIG`."""
    port = str(free_port())
    match launcher:
        case "alone":
            assert ranks == 1
            return ["aqtopo"]
        case "deepspeed":
            launcher = [
                sys.executable,
                "-m",
                "deepspeed.launcher.runner",
            ]  # its script fails in a path with a space
            return [*launcher, "--num_gpus", str(ranks), "--master_port", port, "--module", "aqtopo"]
        case "torchrun":
            return ["torchrun", "--nproc_per_node", str(ranks), "--master_port", port, "--module", "aqtopo"]
    raise ValueError(launcher)


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    code: int
    output: str
    run_dir: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind."""
        return events(self.run_dir, kind)

    def losses(self) -> list[float]:
        return [record["train_loss"] for record in self.events("step")]


RunTraining = Callable[..., Finished]


def write_config(config: RunConfig, folder: Path) -> Path:
    path = folder / f"{config.name}.json"
    path.write_text(config.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def run_training(tmp_path: Path) -> RunTraining:
    """`run_training(config, launcher, arguments)`: train on the configured number of ranks, to the end."""

    def run(
        config: RunConfig, launcher: str = "torchrun", arguments: Sequence[str] = (), ranks: int | None = None
    ) -> Finished:
        command = launcher_command(launcher, ranks or config.world_size)
        command += ["train", str(write_config(config, tmp_path)), *arguments]
        done = subprocess.run(
            command,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        return Finished(done.returncode, done.stdout, Path(config.training.run_dir))

    return run


@dataclass(frozen=True)
class Rank:
    """One running process of a run."""

    process: subprocess.Popen[str]

    def finish(self) -> tuple[int, str]:
        """Wait; exit code and output."""
        output, _ = self.process.communicate(timeout=TIME_LIMIT_S)
        return self.process.returncode, output


StartRanks = Callable[..., list[Rank]]


@pytest.fixture
def start_ranks(tmp_path: Path) -> Iterator[StartRanks]:
    """`start_ranks(config)`: the ranks as bare processes, each to be signalled and to exit by itself.

    `program` replaces `-m aqtopo`, `command` replaces `train`, `folders` are working directories by rank.
    What still runs after the test is killed.
    """
    started: list[Rank] = []

    def start(
        config: RunConfig,
        program: Sequence[str] = ("-m", "aqtopo"),
        command: str = "train",
        folders: Mapping[int, Path] = MappingProxyType({}),
    ) -> list[Rank]:
        path, port, size = write_config(config, tmp_path), str(free_port()), str(config.world_size)
        common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        ranks = [
            Rank(
                subprocess.Popen(
                    [sys.executable, *program, command, str(path)],
                    env=environment(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=port, **common),
                    cwd=folders.get(rank),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            for rank in range(config.world_size)
        ]
        started.extend(ranks)
        return ranks

    yield start
    for rank in started:
        rank.process.kill()
        rank.process.wait()
