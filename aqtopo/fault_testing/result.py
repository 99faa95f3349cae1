"""Result of a fault test: its figures and the reasons why it failed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aqtopo.checkpoint.inspection import diff_states, open_state, verify_state
from aqtopo.checkpoint.shards import KINDS
from aqtopo.checkpoint.tags import Tag, check_pointer, kept_tags, list_tags
from aqtopo.checkpoint.universal import SavedState
from aqtopo.config import CheckpointConfig
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.log_file import METRICS_FILE, StepLine, of_kind, read_log

LOSS_TOLERANCE = 1e-5
"""Relative tolerance of losses; the rounding of sums depends on the world size."""

STATE_TOLERANCE = 1e-5
"""Relative tolerance in the norm of all weights or moments; Adam amplifies noise in single tensors."""

PHASES = ("training", "saving", "committing", "converting", "pruning")
"""Phases that a fault test of many kills must hit at least once."""

MANY_KILLS = 20
"""Number of kills from which all phases, rank 0 and another rank must be hit."""


@dataclass(frozen=True)
class FaultTestResult:
    """Figures of a fault test.

    Attributes:
        wanted: requested kills of a run that has a saved state and has finished its resume; a verified resume
            must follow each of them.
        kills: all kills, including those of runs that were still starting.
        ranks: kills by the rank that was killed first.
        resumes: verified resumes.
        unverified: starts that continued from a saved state without a verified resume.
        lost_tags: committed tags that were missing or damaged after a kill, and invalid pointers.
        missing_steps: steps of the reference that no other run made.
        worst_loss: largest relative difference of a training loss from the reference.
        different_tensors: weights and moments of the last state that are not bitwise equal.
        worst_state: largest relative difference in norm of all weights or all moments of a kind.
        other_differences: differing names, groups, hyperparameters or steps of the last state.
    """

    wanted: int
    kills: int
    phases: dict[str, int]
    ranks: dict[str, int]
    world_sizes: list[int]
    resumes: int
    unverified: int
    lost_tags: list[str]
    steps: int
    missing_steps: int
    worst_loss: float
    different_tensors: int
    worst_state: float
    other_differences: list[str]
    seconds: float

    @property
    def problems(self) -> list[str]:
        """The reasons why the test failed."""
        return [*self.lost_tags, *self.other_differences, *self._reasons()]

    @property
    def passed(self) -> bool:
        """True if there are no problems."""
        return not self.problems

    def _reasons(self) -> Iterator[str]:
        if self.resumes != self.wanted or self.kills < self.wanted:
            yield f"{self.resumes} verified resumes after {self.wanted} kills"
        if self.unverified:
            yield f"{self.unverified} starts continued without a verified resume"
        if self.missing_steps or not self.steps:
            yield f"{self.missing_steps} steps of the reference are missing, {self.steps} were compared"
        if not self.worst_loss <= LOSS_TOLERANCE:  # true for NaN
            yield f"a loss differs from the reference by {self.worst_loss:.3g}"
        if len(set(self.world_sizes)) == 1 and self.different_tensors:
            yield f"{self.different_tensors} tensors are not bitwise equal to the reference's"
        if not self.worst_state <= STATE_TOLERANCE:
            yield f"weights or moments differ from the reference by {self.worst_state:.3g}"
        if self.kills >= MANY_KILLS:
            yield from (f"no kill hit {phase}" for phase in PHASES if not self.phases.get(phase))
            if max(self.world_sizes) > 1 and ("0" not in self.ranks or len(self.ranks) < 2):
                yield f"rank 0 and another rank must be hit, but only these were: {', '.join(self.ranks)}"


def lost_tags(run_dir: Path, known: Sequence[Tag], policy: CheckpointConfig) -> Iterator[str]:
    """Yield the problems of a run's saved states after a kill; `known` were committed before it."""
    left = list_tags(run_dir)
    yield from missing_tags(known, left, policy)
    try:
        check_pointer(run_dir)
        for tag in left[-2:]:
            verify_state(open_state(tag.folder(run_dir)))
    except RefusedError as refusal:
        yield str(refusal)


def missing_tags(known: Sequence[Tag], left: Sequence[Tag], policy: CheckpointConfig) -> Iterator[str]:
    """Yield the missing states that the retention policy keeps."""
    kept = kept_tags(sorted({*known, *left}, key=lambda tag: (tag.step, tag.take)), policy)
    for tag in known:
        if tag in kept and tag not in left:
            yield f"{tag.name}: committed, but missing after a kill"


def compare_losses(reference: Path, out: Path) -> tuple[float, int, int]:
    """Return the largest relative difference of losses, the compared and the missing steps."""
    expected = {line.step: line.train_loss for line in of_kind(read_log(reference / METRICS_FILE), StepLine)}
    found = [
        (line.step, line.train_loss)
        for path in sorted(out.iterdir())
        if path.is_dir() and path != reference
        for line in of_kind(read_log(path / METRICS_FILE), StepLine)
    ]
    differences = [abs(loss - expected[step]) / abs(expected[step]) for step, loss in found]
    missing = expected.keys() - {step for step, _ in found}
    return max(differences, default=float("nan")), len(found), len(missing)


def compare_states(one: Path, other: Path) -> tuple[int, float, list[str]]:
    """Return the number of differing tensors, their largest relative difference and all other differences."""
    ours, theirs = open_state(one), open_state(other)
    tensors = {f"{name} {kind}" for name in ours.manifest.parameters for kind in KINDS}
    differences = list(diff_states(ours, theirs))
    others = [f"{name}: {text}" for name, text in differences if name not in tensors]
    worst = max(_distance(ours, theirs, kind) for kind in KINDS) if not others else float("nan")
    return len(differences) - len(others), worst, others


def _distance(ours: SavedState, theirs: SavedState, kind: str) -> float:
    difference = total = 0.0
    for name in ours.manifest.parameters:
        one, other = (state.tensor(name, kind).double() for state in (ours, theirs))
        difference += float((one - other).square().sum())
        total += float(one.square().sum())
    return float((difference / total) ** 0.5)
