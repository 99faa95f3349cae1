"""Which trainings an ablation consists of, and where they lie.

OUT/ablation.json           what is varied, of which run; an ablation goes on only if it is the same
OUT/configs/N.json          the configuration of training N, as `aqtopo train` takes it
OUT/runs/VARIANT/seedS      its run directory
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from aqtopo.ablation.factors import Factor, Variant, spelled, variants
from aqtopo.ablation.results_file import ABLATION_FILE, CONFIGS, RUNS, training_numbers
from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions
from aqtopo.checkpoint.weights import CONFIG_FILE, read_run_config
from aqtopo.config import RunConfig, load_config
from aqtopo.config.errors import describe
from aqtopo.config.record import Record, Time, read_record


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        number: of its configuration, and of its task in a job array; once given, it stays.
        variant: what it is.
        seed: of weights, sample order and dropout.
        config: the complete configuration.
    """

    number: int
    variant: Variant
    seed: int
    config: RunConfig

    @property
    def run_dir(self) -> Path:
        """Its run directory."""
        return Path(self.config.training.run_dir)

    def __str__(self) -> str:
        return f"{self.variant.label}, seed {self.seed}"


@dataclass(frozen=True)
class Ablation:
    """Every variant with every seed, of one run.

    Attributes:
        out: its folder.
        base: the run that is varied, with what `--set` changed.
        factors: what is varied.
        variants: those beside the grid, then every combination of levels, the baseline last.
        seeds: ascending.
        trials: variants x seeds, seed by seed, so that an early look compares like with like.
    """

    out: Path
    base: RunConfig
    factors: tuple[Factor, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]

    def config_path(self, trial: Trial) -> Path:
        """Where a trial's configuration lies."""
        return self.out / CONFIGS / f"{trial.number}.json"


def plan_ablation(
    config_path: Path,
    overrides: Sequence[str],
    factors: tuple[Factor, ...],
    seeds: int,
    out: Path,
    also: Sequence[str] = (),
) -> Ablation:
    """Work out all trainings; writes nothing.

    A training that the folder knows has the number that it has there, a new one the next that is free.

    Args:
        config_path: the run that is varied.
        overrides: of all variants, as `--set` takes them.
        factors: the grid.
        seeds: trainings of each variant.
        out: folder of the ablation.
        also: variants beside the grid, see `variants`.

    Raises:
        ValueError: a configuration is wrong, two variants are the same, or there is no seed.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one training of each variant is needed.")
    base = load_config(config_path, overrides)
    chosen = tuple(range(base.training.seed, base.training.seed + seeds))
    combinations = tuple(variants(factors, also))
    trials: list[Trial] = []
    known = training_numbers(out)
    free = itertools.count(1 + max(known.values(), default=-1))
    for seed in chosen:
        for variant in combinations:
            place = out / RUNS / variant.slug / f"seed{seed}"
            number = known.get((variant.slug, place.name))
            own = [f"training.seed={seed}", f"training.run_dir={json.dumps(str(place))}"]
            config = load_config(config_path, [*overrides, *variant.overrides, *own])
            trials.append(Trial(next(free) if number is None else number, variant, seed, config))
    _check_distinct(trials[: len(combinations)])
    return Ablation(out, base, factors, combinations, chosen, tuple(trials))


def _check_distinct(trials: Sequence[Trial]) -> None:
    """Refuse variants of one seed that differ in nothing but spelling, or in what their names do not say.

    Raises:
        ValueError: two of them are the same model, trained the same way, or would share a run directory.
    """
    for one, other in itertools.combinations(trials, 2):
        if (one.config.model, one.config.optimizer) == (other.config.model, other.config.optimizer):
            first, second = (
                f"--also {trial.variant.label}" if trial.variant.also else trial.variant.label
                for trial in (one, other)
            )
            raise ValueError(f"the variants {first} and {second} are the same. Leave one of them out.")
        if one.run_dir == other.run_dir:
            raise ValueError(
                f"two variants would share the folder {one.run_dir}: they are called by the last part of "
                "their settings alone. Train one of them in an ablation of its own, with another --out."
            )


def claim_folder(ablation: Ablation) -> None:
    """Write down what is varied, or make sure that the folder belongs to this very ablation.

    More seeds and more levels than before are welcome: what is trained already is kept.

    Raises:
        ValueError: the folder holds another ablation, or something else.
    """
    path = ablation.out / ABLATION_FILE
    if path.is_file():
        _check_same(path, ablation)
    elif ablation.out.exists() and not ablation.out.is_dir():
        raise ValueError(f"{ablation.out} is a file, not a folder for trainings. Choose another --out.")
    elif ablation.out.is_dir() and any(ablation.out.iterdir()):
        raise ValueError(f"{ablation.out} is not empty and holds no ablation. Choose another --out.")
    for trial in ablation.trials:
        _check_own(trial)
    (ablation.out / CONFIGS).mkdir(parents=True, exist_ok=True)
    for trial in ablation.trials:
        write_durably(ablation.config_path(trial), trial.config.to_json() + "\n")
    write_durably(path, _description(ablation).model_dump_json(indent=2) + "\n")


def _check_own(trial: Trial) -> None:
    """Make sure that what lies in a run directory is a training of this variant with this seed.

    Raises:
        ValueError: it is of another, which was called the same.
    """
    if not (trial.run_dir / CONFIG_FILE).is_file():
        return
    found, wanted = read_run_config(trial.run_dir), trial.config
    same_settings = (found.model, found.optimizer) == (wanted.model, wanted.optimizer)
    if not (same_settings and found.training.seed == wanted.training.seed):
        raise ValueError(
            f"{trial.run_dir} holds another training than {trial}: folders are called by the last part of "
            "settings alone. Choose another --out."
        )


class Description(Record):
    """What `ablation.json` holds."""

    format_version: Literal[1] = 1
    """Must be 1, which this aqtopo writes."""
    config: dict[str, Any]
    """The run that is varied, as `aqtopo train` takes it."""
    factors: dict[str, tuple[str, ...]]
    """What is varied: by path the levels, the baseline last."""
    seeds: tuple[int, ...]
    """Of the trainings of each variant."""
    versions: dict[str, str | None]
    """Of the packages."""
    written: Time
    """When."""


def _description(ablation: Ablation) -> Description:
    return Description(
        config=json.loads(ablation.base.to_json()),
        factors={factor.path: tuple(map(spelled, factor.levels)) for factor in ablation.factors},
        seeds=ablation.seeds,
        versions=package_versions(),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_same(path: Path, ablation: Ablation) -> None:
    """Make sure that a folder's description is of this configuration and these factors.

    Raises:
        ValueError: it is not, or is damaged.
    """
    before = read_record(path, Description, f"Choose another --out, or remove {path.parent}.")
    try:
        # Read as a configuration, not as text: what this aqtopo added since has its default.
        same_config = RunConfig.model_validate(before.config).digest == ablation.base.digest
    except ValidationError as error:
        raise ValueError(
            f"{describe(error, RunConfig, str(path))}\nChoose another --out, or remove {path.parent}."
        ) from None
    if not (same_config and [*before.factors] == [factor.path for factor in ablation.factors]):
        raise ValueError(
            f"{ablation.out} holds an ablation of another configuration, or of other factors. Choose another "
            "--out, or remove it."
        )
