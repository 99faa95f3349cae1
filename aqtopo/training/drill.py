"""The drill: kill a run again and again, let it resume by itself, and compare it with one left in peace.

Ranks are forked from a server that has imported everything, so that a start takes a second. A random rank is
killed with SIGKILL at a random moment: while starting, training, saving, pruning, converting or resuming. The
others are killed a moment later, as a launcher would. Every start has another number of ranks.
"""

import itertools
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from aqtopo.checkpoint.commit import HASHES
from aqtopo.checkpoint.inspection import diff_states, open_state, verify_state
from aqtopo.checkpoint.tags import CHECKPOINTS, DISCARDED, UNFINISHED, UNIVERSAL, Tag, last_tag
from aqtopo.config import RunConfig, load_config
from aqtopo.refusal import RefusedError
from aqtopo.training.run_log import METRICS_FILE

LOSS_TOLERANCE = 1e-5
"""Relative; other world sizes add in another order."""

STARTING_SHARE = 0.2
"""Share of the kills that fall before the first step: starting, converting, verifying."""

START_LIMIT_S = 300.0


@dataclass(frozen=True)
class DrillResult:
    """What came out.

    Attributes:
        kills: processes killed.
        phases: how many of the kills fell into which phase.
        resumes: verified resumes of the victim.
        lost_tags: last committed tags that were gone or damaged after a kill.
        steps: steps compared.
        worst_loss: largest relative difference of a training loss from the reference.
        different_tensors: tensors of the last state that differ from the reference, and by how much.
        seconds: wall time.
    """

    kills: int
    phases: dict[str, int]
    resumes: int
    lost_tags: list[str]
    steps: int
    worst_loss: float
    different_tensors: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every kill was survived and the losses are the reference's."""
        return not self.lost_tags and self.worst_loss <= LOSS_TOLERANCE


def drill(
    config_path: Path, out: Path, kills: int, worlds: Sequence[int], steps: int, every_steps: int, seed: int
) -> DrillResult:
    """Run the drill.

    Args:
        config_path: the run to drill.
        out: folder for both runs; must not exist.
        kills: how often.
        worlds: numbers of ranks, taken in turn; the first is the reference's.
        steps: length of both runs.
        every_steps: steps between saves.
        seed: of what is killed when.

    Raises:
        ValueError: the configuration is wrong, or `out` exists.
        RefusedError: a resume was refused, or a run failed by itself.
    """
    if out.exists():
        raise ValueError(f"{out} exists. Name another folder with --out, or remove it.")
    began, chosen = time.monotonic(), random.Random(seed)
    configs = {
        name: _drilled(config_path, out / name, worlds[0], every_steps) for name in ("reference", "victim")
    }
    reference = _Ranks(configs["reference"], worlds[0], steps, out / "reference.log")
    reference.await_step(out / "reference", 0)
    starting_s = time.monotonic() - began
    reference.wait()
    step_s = (time.monotonic() - began - starting_s) / steps
    phases: Counter[str] = Counter()
    lost: list[str] = []
    victim, starts = out / "victim", itertools.count()
    turns = itertools.cycle([*worlds[1:], worlds[0]])  # the first is the fresh start's
    while sum(phases.values()) < kills:
        before, seen = last_tag(victim), len(_events(victim / METRICS_FILE, "step"))
        ranks = _start(configs["victim"], turns, steps, out / f"victim{next(starts):03d}.log", before)
        if not phases:  # the first kill of all leaves something to resume from
            ranks.await_state(victim)
        elif chosen.random() < STARTING_SHARE:
            time.sleep(chosen.uniform(0.0, starting_s))
        else:
            # A few steps on, and within a step: a share of the run's time would outlast most runs on a busy
            # machine, whose pace changes.
            ranks.await_step(victim, seen + chosen.randrange(2 * every_steps))
            time.sleep(chosen.uniform(0.0, 2.0 * step_s))
        phase = ranks.kill_one(chosen, victim)
        if phase is None:  # it was done before its hour came: begin a new one, so that kills go on
            victim.rename(out / f"finished{next(starts):03d}")
            continue
        phases[phase] += 1
        lost += _lost(victim, None if before is None else before.name)
    _start(configs["victim"], turns, steps, out / "victim.log", last_tag(victim)).wait()
    worst, count = _compare_losses(out / "reference", out)
    differing = sum(1 for _ in diff_states(open_state(out / "reference"), open_state(victim)))
    resumes = sum(len(_events(path, "resume")) for path in out.glob(f"*/{METRICS_FILE}"))
    return DrillResult(kills, dict(phases), resumes, lost, count, worst, differing, time.monotonic() - began)


def _start(config: RunConfig, turns: Iterator[int], steps: int, log: Path, before: Tag | None) -> "_Ranks":
    """The next number of ranks; a fresh start, without a state to resume from, takes the configured one."""
    world = config.world_size if before is None else next(turns)
    return _Ranks(config, world, steps, log)


def _drilled(config_path: Path, run_dir: Path, world: int, every_steps: int) -> RunConfig:
    """The run, shortened; the samples of a step stay what they are."""
    config = load_config(config_path)
    batch = config.train_batch
    if batch % world:
        raise ValueError(f"{batch} samples a step cannot be divided among {world} ranks. Choose --worlds.")
    overrides = [
        f"training.run_dir={json.dumps(str(run_dir))}",
        f"checkpoint.every_steps={every_steps}",
        "training.nodes=1",
        f"training.ranks_per_node={world}",
        f"deepspeed.train_micro_batch_size_per_gpu={batch // world}",
        "deepspeed.gradient_accumulation_steps=1",
        "data.workers=0",
    ]
    return load_config(config_path, overrides)


class _Ranks:
    """Running processes of one run."""

    def __init__(self, config: RunConfig, world: int, steps: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["deepspeed", "aqtopo.training.loop"])
        port = _free_port()
        self.log = log
        self.processes: list[ForkServerProcess] = [
            context.Process(target=_run_rank, args=(config.to_json(), rank, world, port, steps, str(log)))
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def await_step(self, run_dir: Path, seen: int) -> None:
        """Wait until the run has logged more than `seen` steps, or ended."""
        deadline = time.monotonic() + START_LIMIT_S
        while all(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if len(_events(run_dir / METRICS_FILE, "step")) > seen:
                return
            time.sleep(0.02)

    def await_state(self, run_dir: Path) -> None:
        """Wait until the run has a saved state, or ended."""
        deadline = time.monotonic() + START_LIMIT_S
        while all(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if last_tag(run_dir) is not None:
                return
            time.sleep(0.02)

    def kill_one(self, chosen: random.Random, run_dir: Path) -> str | None:
        """Kill a random rank, the rest a moment later; in which phase, or None if all had ended before."""
        victim = chosen.choice(self.processes)
        if victim.exitcode is not None:
            self.wait()
            return None
        victim.kill()
        phase = _phase(run_dir)
        time.sleep(chosen.uniform(0.0, 0.5))
        self._end()
        return phase

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self) -> None:
        """Wait for all, who must end well.

        Raises:
            RefusedError: some did not.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in self.processes):
                break
            time.sleep(0.05)
        codes = [process.exitcode for process in self.processes]
        self._end()
        if any(codes) or None in codes:
            raise RefusedError(f"the run ended with {codes}:\n{self.log.read_text()[-3000:]}")


def _run_rank(config_json: str, rank: int, world: int, port: int, steps: int, log: str) -> None:
    """One rank, in a process of its own."""
    from aqtopo.training.distributed import Launch
    from aqtopo.training.loop import train
    from aqtopo.training.resume import AUTO, ResumeOptions

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    launch = Launch("torch", rank, rank, world, world, "127.0.0.1", port)
    try:
        train(RunConfig.model_validate_json(config_json), launch, steps, ResumeOptions(AUTO))
    except (RefusedError, ValueError) as error:
        print(f"rank {rank}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _phase(run_dir: Path) -> str:
    """What a run was doing, by what lies in its checkpoints."""
    folder = run_dir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(folder.glob(f"*{UNFINISHED}/{HASHES}")):
        return "committing"
    for suffix, phase in (
        (UNIVERSAL + UNFINISHED, "converting"),
        (DISCARDED, "pruning"),
        (UNFINISHED, "saving"),
    ):
        if any(name.endswith(suffix) for name in names):
            return phase
    return "training" if _events(run_dir / METRICS_FILE, "step") else "starting"


def _lost(run_dir: Path, before: str | None) -> list[str]:
    """The last state, if it is gone or damaged."""
    tag = last_tag(run_dir)
    if tag is None:
        return [] if before is None else [f"{before}: gone, and no other is there"]
    try:
        verify_state(open_state(tag.folder(run_dir)))
    except RefusedError as refusal:
        return [f"{tag.name}: {refusal}"]
    return []


def _compare_losses(reference: Path, out: Path) -> tuple[float, int]:
    """Largest relative difference of any step's loss, of all victims, and how many were compared."""
    expected = {event["step"]: event["train_loss"] for event in _events(reference / METRICS_FILE, "step")}
    found = [
        (event["step"], event["train_loss"])
        for path in out.glob(f"*/{METRICS_FILE}")
        if path.parent != reference
        for event in _events(path, "step")
    ]
    differences = [abs(loss - expected[step]) / abs(expected[step]) for step, loss in found]
    return max(differences, default=float("nan")), len(found)


def _events(path: Path, kind: str) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return [event for line in whole if line and (event := json.loads(line))["event"] == kind]
