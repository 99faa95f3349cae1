"""Fault test: kill and resume a run many times and compare it with an undisturbed run.

Each kill sends SIGKILL to a random rank and, as a launcher does, to the others shortly after. Half of the
kills come at a random time. The others wait for that phase of saving, committing, converting and pruning
which was hit least. Each start has another number of ranks.
"""

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aqtopo.checkpoint.tags import Tag, list_tags
from aqtopo.checkpoint.universal import universal_folder
from aqtopo.config import RunConfig, load_config
from aqtopo.fault_testing.ranks import FILE_PHASES, POLL_S, Kill, RanksUnderTest, file_phase, logged_steps
from aqtopo.fault_testing.result import FaultTestResult, compare_losses, compare_states, lost_tags
from aqtopo.run_directory.log_file import METRICS_FILE, ResumeLine, StepLine, of_kind, read_log

PHASE_SHARE = 0.5
"""Share of the kills that wait for a short phase."""

STARTING_SHARE = 0.2
"""Share of the other kills that come before the first step."""


def fault_test(
    config_path: Path, out: Path, kills: int, worlds: Sequence[int], steps: int, every_steps: int, seed: int
) -> FaultTestResult:
    """Run a fault test of two runs of `steps` steps in the new folder `out`.

    `kills` counts kills of a run that trains and has a saved state; kills during a start do not count.
    `worlds` are numbers of ranks, used in turn; the first is the reference's.

    Raises:
        ValueError: the configuration is wrong, or `out` exists.
        RefusedError: a resume was refused, or a run failed without a kill.
    """
    if out.exists():
        raise ValueError(f"{out} exists. Name another folder with --out, or remove it.")
    began = time.monotonic()
    reference = out / "reference"
    config = _test_config(config_path, reference, worlds[0], every_steps)
    ranks = RanksUnderTest(config, worlds[0], steps, out / "reference.log")
    ranks.wait_until(lambda: logged_steps(reference) > 0)
    starting_s = time.monotonic() - began
    ranks.wait()
    step_s = (time.monotonic() - began - starting_s) / steps
    config = _test_config(config_path, out / "victim", worlds[0], every_steps)
    turns = itertools.cycle([*worlds[1:], worlds[0]])  # the first is the fresh start's
    victim = _VictimRun(config, steps, every_steps, turns, random.Random(seed), starting_s, step_s)
    while victim.counted < kills:
        victim.kill_once()
    victim.finish()
    worst, count, missing = compare_losses(reference, out)
    different, worst_state, others = compare_states(reference, out / "victim")
    return FaultTestResult(
        wanted=kills,
        kills=len(victim.kills),
        phases=dict(Counter(kill.phase for kill in victim.kills)),
        ranks=dict(Counter(str(kill.rank) for kill in victim.kills)),
        world_sizes=list(worlds),
        resumes=sum(len(of_kind(read_log(path / METRICS_FILE), ResumeLine)) for path in out.iterdir()),
        unverified=victim.unverified,
        lost_tags=victim.lost,
        steps=count,
        missing_steps=missing,
        worst_loss=worst,
        different_tensors=different,
        worst_state=worst_state,
        other_differences=others,
        seconds=time.monotonic() - began,
    )


def _test_config(config_path: Path, run_dir: Path, world: int, every_steps: int) -> RunConfig:
    """Return the configuration with frequent saves and pruning and the same samples per step."""
    config = load_config(config_path)
    batch = config.train_batch
    if batch % world:
        raise ValueError(f"{batch} samples per step cannot be divided among {world} ranks. Choose --worlds.")
    overrides = [
        f"training.run_dir={json.dumps(str(run_dir))}",
        f"training.validate_every={every_steps + 1}",
        "training.patience=null",
        f"checkpoint.every_steps={every_steps}",
        f"checkpoint.keep_every_steps={4 * every_steps}",
        "checkpoint.keep_best=1",
        "training.nodes=1",
        f"training.ranks_per_node={world}",
        f"deepspeed.train_micro_batch_size_per_gpu={batch // world}",
        "deepspeed.gradient_accumulation_steps=1",
        "data.workers=0",
    ]
    return load_config(config_path, overrides)


@dataclass
class _VictimRun:
    """The run that is killed, over all its starts."""

    config: RunConfig
    steps: int
    every_steps: int
    turns: Iterator[int]  # numbers of ranks
    rng: random.Random
    starting_s: float  # duration of a start
    step_s: float  # duration of a step
    kills: list[Kill] = field(default_factory=list)
    counted: int = 0  # kills of a run that trains and has a saved state
    unverified: int = 0  # starts that continued from a saved state without a verified resume
    lost: list[str] = field(default_factory=list)  # problems of the saved states after a kill
    wait_for_phases: bool = True  # False after a start that ended before its phase came
    starts: Iterator[int] = field(default_factory=itertools.count)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return Path(self.config.training.run_dir)

    def kill_once(self) -> None:
        """Start the run, kill it and check its saved states."""
        before, seen, resumes = self._facts()
        ranks = self._start(before)
        self._wait_for_kill(ranks, before, seen)
        known = list_tags(self.run_dir)
        kill = ranks.kill_one(self.rng, self.run_dir)
        resumed = self._note_start(before, seen, resumes)
        self.wait_for_phases = kill is not None
        if kill is None:  # it finished before it could be killed: start a new run
            self.run_dir.rename(self.run_dir.with_name(f"finished{next(self.starts):03d}"))
            return
        self.kills.append(kill)
        self.lost += lost_tags(self.run_dir, known, self.config.checkpoint)
        if (before is None or resumed) and list_tags(self.run_dir):
            self.counted += 1

    def finish(self) -> None:
        """Run to the end."""
        before, seen, resumes = self._facts()
        self._start(before).wait()
        self._note_start(before, seen, resumes)

    def _facts(self) -> tuple[Tag | None, int, int]:
        """Return the last saved state, the logged steps and the logged resumes."""
        tags = list_tags(self.run_dir)
        lines = list(read_log(self.run_dir / METRICS_FILE))
        steps, resumes = len(of_kind(lines, StepLine)), len(of_kind(lines, ResumeLine))
        return (tags[-1] if tags else None), steps, resumes

    def _note_start(self, before: Tag | None, seen: int, resumes: int) -> bool:
        """Return True if the start resumed; count it if it trained from a saved state without a resume."""
        _, steps, now = self._facts()
        if before is not None and steps > seen and now == resumes:
            self.unverified += 1
        return now > resumes

    def _start(self, before: Tag | None) -> RanksUnderTest:
        """Start the next number of ranks; a fresh start needs the configured number."""
        world = self.config.world_size if before is None else next(self.turns)
        log = self.run_dir.parent / f"victim{next(self.starts):03d}.log"
        return RanksUnderTest(self.config, world, self.steps, log)

    def _wait_for_kill(self, ranks: RanksUnderTest, before: Tag | None, seen: int) -> None:
        """Wait until the time of the kill."""
        if not self.kills:  # the first kill needs a state to resume from
            ranks.wait_until(lambda: bool(list_tags(self.run_dir)))
        elif self.wait_for_phases and self.rng.random() < PHASE_SHARE:
            phase = self._least_hit_phase(before)
            ranks.wait_until(lambda: file_phase(self.run_dir) == phase, POLL_S)
        elif self.rng.random() < STARTING_SHARE:
            time.sleep(self.rng.uniform(0.0, self.starting_s))
        else:
            # In steps, because the pace varies, and the run could end before a fixed time.
            steps = seen + self.rng.randrange(2 * self.every_steps)
            ranks.wait_until(lambda: logged_steps(self.run_dir) > steps)
            time.sleep(self.rng.uniform(0.0, 2.0 * self.step_s))

    def _least_hit_phase(self, before: Tag | None) -> str:
        """Return the least hit of the phases that are possible."""
        hit = Counter(kill.phase for kill in self.kills)
        converted = before is None or universal_folder(before.folder(self.run_dir)).exists()
        possible = [phase for phase in FILE_PHASES if phase != "converting" or not converted]
        return min(possible, key=lambda phase: hit[phase])
