"""Trainings as the tasks of a Slurm job array: a task's number is that of its configuration."""

from collections.abc import Iterable

from aqtopo.ablation.plan import Ablation
from aqtopo.ablation.trainer import is_trained


def due(ablation: Ablation) -> list[int]:
    """The numbers of the trainings that have not come to their end, ascending."""
    return sorted(trial.number for trial in ablation.trials if not is_trained(trial))


def spell_tasks(numbers: Iterable[int]) -> str:
    """Numbers, ascending, as `sbatch --array` takes them: `0-3,7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
