"""The drill: kill a run again and again, let it resume by itself, and compare it with one left in peace.

A random rank is killed with SIGKILL, half of the time at a random moment, else when the run is seen to save,
commit, convert or prune, whichever was hit least so far. The others are killed a moment later, as a launcher
would. Every start has another number of ranks.
"""

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aqtopo.checkpoint.log_file import METRICS_FILE, ResumeLine, StepLine, of_kind, read_log
from aqtopo.checkpoint.tags import Tag, list_tags
from aqtopo.checkpoint.universal import universal_folder
from aqtopo.config import RunConfig, load_config
from aqtopo.training.drill_ranks import TRACES, DrilledRanks, Kill
from aqtopo.training.drill_verdict import DrillResult, compare_losses, compare_states, lost_tags

AIMED_SHARE = 0.5
"""Share of the kills that wait for a phase which lasts too short for chance."""

STARTING_SHARE = 0.2
"""Share of the others that fall before the first step: starting, converting, verifying."""


def drill(
    config_path: Path, out: Path, kills: int, worlds: Sequence[int], steps: int, every_steps: int, seed: int
) -> DrillResult:
    """Run the drill.

    Args:
        config_path: the run to drill.
        out: folder for both runs; must not exist.
        kills: of a run that trains and has a saved state; those of one that still starts come on top.
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
    began = time.monotonic()
    reference = out / "reference"
    config = _drilled(config_path, reference, worlds[0], every_steps)
    ranks = DrilledRanks(config, worlds[0], steps, out / "reference.log")
    ranks.await_step(reference, 0)
    starting_s = time.monotonic() - began
    ranks.wait()
    step_s = (time.monotonic() - began - starting_s) / steps
    config = _drilled(config_path, out / "victim", worlds[0], every_steps)
    turns = itertools.cycle([*worlds[1:], worlds[0]])  # the first is the fresh start's
    course = _Course(config, steps, every_steps, turns, random.Random(seed), starting_s, step_s)
    while course.counted < kills:
        course.kill_once()
    course.finish()
    worst, count, missing = compare_losses(reference, out)
    different, worst_state, others = compare_states(reference, out / "victim")
    return DrillResult(
        wanted=kills,
        kills=len(course.kills),
        phases=dict(Counter(kill.phase for kill in course.kills)),
        ranks=dict(Counter(str(kill.rank) for kill in course.kills)),
        world_sizes=list(worlds),
        resumes=sum(len(of_kind(read_log(path / METRICS_FILE), ResumeLine)) for path in out.iterdir()),
        unverified=course.unverified,
        lost_tags=course.lost,
        steps=count,
        missing_steps=missing,
        worst_loss=worst,
        different_tensors=different,
        worst_state=worst_state,
        other_differences=others,
        seconds=time.monotonic() - began,
    )


def _drilled(config_path: Path, run_dir: Path, world: int, every_steps: int) -> RunConfig:
    """The run, shortened; the samples of a step stay what they are. States come often, and go again."""
    config = load_config(config_path)
    batch = config.train_batch
    if batch % world:
        raise ValueError(f"{batch} samples a step cannot be divided among {world} ranks. Choose --worlds.")
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
class _Course:
    """The starts of the run that is killed, and what became of them.

    Attributes:
        config: the run.
        steps: its length.
        every_steps: steps between its saves.
        turns: numbers of ranks.
        chosen: what is left to chance.
        starting_s: how long a start takes [s].
        step_s: how long a step takes [s].
        kills: in order.
        counted: of these, those of a run that was past its start and has a saved state.
        unverified: starts that went on from a saved state without a verified resume.
        lost: what was wrong with the saved states after a kill.
        aim: whether the next kill may wait for a phase: not after one that waited in vain.
    """

    config: RunConfig
    steps: int
    every_steps: int
    turns: Iterator[int]
    chosen: random.Random
    starting_s: float
    step_s: float
    kills: list[Kill] = field(default_factory=list)
    counted: int = 0
    unverified: int = 0
    lost: list[str] = field(default_factory=list)
    aim: bool = True
    starts: Iterator[int] = field(default_factory=itertools.count)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return Path(self.config.training.run_dir)

    def kill_once(self) -> None:
        """Start the run, kill it at some moment and look at what is left."""
        before, seen, resumes = self._facts()
        ranks = self._start(before)
        self._await_moment(ranks, before, seen)
        known = list_tags(self.run_dir)
        kill = ranks.kill_one(self.chosen, self.run_dir)
        resumed = self._note_start(before, seen, resumes)
        self.aim = kill is not None
        if kill is None:  # it was done before its hour came: begin a new one, so that kills go on
            self.run_dir.rename(self.run_dir.with_name(f"finished{next(self.starts):03d}"))
            return
        self.kills.append(kill)
        self.lost += lost_tags(self.run_dir, known, self.config.checkpoint)
        if (before is None or resumed) and list_tags(self.run_dir):
            self.counted += 1

    def finish(self) -> None:
        """Let the run go on to its end."""
        before, seen, resumes = self._facts()
        self._start(before).wait()
        self._note_start(before, seen, resumes)

    def _facts(self) -> tuple[Tag | None, int, int]:
        """The last saved state, steps logged, resumes logged."""
        tags = list_tags(self.run_dir)
        lines = list(read_log(self.run_dir / METRICS_FILE))
        steps, resumes = len(of_kind(lines, StepLine)), len(of_kind(lines, ResumeLine))
        return (tags[-1] if tags else None), steps, resumes

    def _note_start(self, before: Tag | None, seen: int, resumes: int) -> bool:
        """Whether the start resumed; it must have, if it made steps after a saved state."""
        _, steps, now = self._facts()
        if before is not None and steps > seen and now == resumes:
            self.unverified += 1
        return now > resumes

    def _start(self, before: Tag | None) -> DrilledRanks:
        """The next number of ranks; a fresh start, with nothing to resume from, takes the configured one."""
        world = self.config.world_size if before is None else next(self.turns)
        log = self.run_dir.parent / f"victim{next(self.starts):03d}.log"
        return DrilledRanks(self.config, world, self.steps, log)

    def _await_moment(self, ranks: DrilledRanks, before: Tag | None, seen: int) -> None:
        """Wait for the moment of the kill."""
        if not self.kills:  # the first kill of all leaves something to resume from
            ranks.await_state(self.run_dir)
        elif self.aim and self.chosen.random() < AIMED_SHARE:
            ranks.await_trace(self.run_dir, self._neglected(before))
        elif self.chosen.random() < STARTING_SHARE:
            time.sleep(self.chosen.uniform(0.0, self.starting_s))
        else:
            # A few steps on, and within a step: a share of the run's time would outlast most runs on a busy
            # machine, whose pace changes.
            ranks.await_step(self.run_dir, seen + self.chosen.randrange(2 * self.every_steps))
            time.sleep(self.chosen.uniform(0.0, 2.0 * self.step_s))

    def _neglected(self, before: Tag | None) -> str:
        """The phase that was hit least, of those that can come."""
        hit = Counter(kill.phase for kill in self.kills)
        converted = before is None or universal_folder(before.folder(self.run_dir)).exists()
        possible = [phase for phase in TRACES if phase != "converting" or not converted]
        return min(possible, key=lambda phase: hit[phase])
