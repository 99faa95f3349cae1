"""What a drill came to: figures, and every reason why it did not pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aqtopo.checkpoint.inspection import SavedState, diff_states, open_state, verify_state
from aqtopo.checkpoint.log_file import METRICS_FILE, StepLine, of_kind, read_log
from aqtopo.checkpoint.shards import KINDS
from aqtopo.checkpoint.tags import Tag, check_pointer, list_tags
from aqtopo.config import CheckpointConfig
from aqtopo.refusal import RefusedError

LOSS_TOLERANCE = 1e-5
"""Relative; other world sizes add in another order."""

STATE_TOLERANCE = 1e-5
"""Relative, in the norm of all weights or moments of a kind: where a gradient is nothing but rounding, Adam
makes much of little."""

PHASES = ("training", "saving", "committing", "converting", "pruning")
"""In which a drill of many kills must have hit the run at least once."""

MANY = 20
"""Kills from which a drill must have hit all phases, and rank 0 as well as others."""


@dataclass(frozen=True)
class DrillResult:
    """What came out.

    Attributes:
        wanted: kills that were asked for: of a run that had a saved state and was past resuming from the one
            before. Each of them must be followed by a verified resume.
        kills: all kills; those of runs that were still starting come on top.
        phases: how many of the kills fell into which phase.
        ranks: how many of them hit which rank first.
        world_sizes: numbers of ranks that were drilled.
        resumes: verified resumes.
        unverified: starts that went on from a saved state without a verified resume.
        lost_tags: committed tags that were gone or damaged after a kill, and pointers to nothing.
        steps: steps compared.
        missing_steps: steps of the reference that no other run made.
        worst_loss: largest relative difference of a training loss from the reference.
        different_tensors: weights and moments of the last state that are not the reference's to the bit.
        worst_state: largest relative difference, in the norm, of all weights or all moments of a kind.
        other_differences: names, groups, hyperparameters or steps of the last state that are not the same.
        seconds: wall time.
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
        """Every reason why the drill did not pass."""
        return [*self.lost_tags, *self.other_differences, *self._reasons()]

    @property
    def passed(self) -> bool:
        """Whether every kill was survived and the run came out as the reference."""
        return not self.problems

    def _reasons(self) -> Iterator[str]:
        if self.resumes != self.wanted or self.kills < self.wanted:
            yield f"{self.resumes} verified resumes after {self.wanted} kills"
        if self.unverified:
            yield f"{self.unverified} starts went on without a verified resume"
        if self.missing_steps or not self.steps:
            yield f"{self.missing_steps} steps of the reference were never made, {self.steps} compared"
        if not self.worst_loss <= LOSS_TOLERANCE:  # also where it is NaN
            yield f"a loss differs from the reference by {self.worst_loss:.3g}"
        if len(set(self.world_sizes)) == 1 and self.different_tensors:
            yield f"{self.different_tensors} tensors are not the reference's to the bit"
        if not self.worst_state <= STATE_TOLERANCE:
            yield f"weights or moments differ from the reference by {self.worst_state:.3g}"
        if self.kills >= MANY:
            yield from (f"no kill hit {phase}" for phase in PHASES if not self.phases.get(phase))
            if max(self.world_sizes) > 1 and ("0" not in self.ranks or len(self.ranks) < 2):
                yield f"rank 0 and others were not both hit, only {', '.join(self.ranks)}"


def lost_tags(run_dir: Path, known: Sequence[Tag], policy: CheckpointConfig) -> Iterator[str]:
    """What is wrong with a run's saved states after a kill.

    Args:
        run_dir: the run's; none of its processes is left.
        known: the states that were committed before the kill.
        policy: which states are kept.
    """
    left = list_tags(run_dir)
    yield from wrongly_gone(known, left, policy)
    try:
        check_pointer(run_dir)
        for tag in left[-2:]:
            verify_state(open_state(tag.folder(run_dir)))
    except RefusedError as refusal:
        yield str(refusal)


def wrongly_gone(known: Sequence[Tag], left: Sequence[Tag], policy: CheckpointConfig) -> Iterator[str]:
    """States that are gone though no later one had taken their place or they were to be kept anyway."""
    every = sorted({*known, *left}, key=lambda tag: (tag.step, tag.take))
    validated = [tag for tag in every if tag.val_loss is not None]
    best = sorted(validated, key=lambda tag: (tag.val_loss or 0.0, tag.step))[: policy.keep_best]
    for tag in known:
        kept_every = policy.keep_every_steps
        periodic = kept_every is not None and tag.step % kept_every == 0
        if tag not in left and (tag == every[-1] or tag in best or periodic):
            yield f"{tag.name}: committed, and gone after a kill"


def compare_losses(reference: Path, out: Path) -> tuple[float, int, int]:
    """Largest relative difference of any other run's loss at a step, steps compared, and steps not made."""
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
    """Tensors that differ to the bit, by how much at most by kind, and what else differs."""
    ours, theirs = open_state(one), open_state(other)
    tensors = {f"{name} {kind}" for name in ours.manifest.parameters for kind in KINDS}
    differences = list(diff_states(ours, theirs))
    others = [f"{name}: {text}" for name, text in differences if name not in tensors]
    worst = max(_distance(ours, theirs, kind) for kind in KINDS) if not others else float("nan")
    return len(differences) - len(others), worst, others


def _distance(ours: SavedState, theirs: SavedState, kind: str) -> float:
    difference = total = 0.0
    for name in ours.manifest.parameters:
        one, other = (state.tensors.tensor(name, kind).double() for state in (ours, theirs))
        difference += float((one - other).square().sum())
        total += float(one.square().sum())
    return float((difference / total) ** 0.5)
