"""Trainings of an ablation and their files.

OUT/ablation.json           factors and varied run; only the same ablation can resume
OUT/configs/N.json          configuration of training N, for `aqtopo train`
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

from aqtopo.ablation.factors import Factor, Variant, format_level, variants
from aqtopo.ablation.results_file import ABLATION_FILE, CONFIGS, RUNS, training_numbers
from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions
from aqtopo.config import RunConfig, load_config
from aqtopo.config.errors import describe
from aqtopo.config.record import Record, Time, read_record
from aqtopo.run_directory.run_file import CONFIG_FILE, read_run_config


@dataclass(frozen=True)
class Trial:
    """One training. The number of its configuration and of its job-array task never changes."""

    number: int
    variant: Variant
    seed: int
    config: RunConfig

    @property
    def run_dir(self) -> Path:
        """Run directory."""
        return Path(self.config.training.run_dir)

    def __str__(self) -> str:
        return f"{self.variant.label}, seed {self.seed}"


@dataclass(frozen=True)
class Ablation:
    """All variants of one run, with all seeds.

    `variants` are extra variants, then every combination of levels, the baseline last. `trials` are ordered
    seed by seed, so that early results are comparable.
    """

    out: Path
    base: RunConfig
    factors: tuple[Factor, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]

    def config_path(self, trial: Trial) -> Path:
        """Return the path of a trial's configuration."""
        return self.out / CONFIGS / f"{trial.number}.json"


def plan_ablation(
    config_path: Path,
    overrides: Sequence[str],
    factors: tuple[Factor, ...],
    seeds: int,
    out: Path,
    also: Sequence[str] = (),
) -> Ablation:
    """Plan all trainings without writing.

    A training that the folder `out` contains keeps its number; a new one gets the next free number.
    `overrides` are those of all variants, `seeds` is the number of trainings of each variant, and `also` are
    the extra variants, see `variants`.

    Raises:
        ValueError: a configuration is invalid, two variants are equal, or there is no seed.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds} is too small. Use at least 1.")
    base = load_config(config_path, overrides)
    chosen = tuple(range(base.training.seed, base.training.seed + seeds))
    combinations = tuple(variants(factors, also))
    samples = _common_history(config_path, overrides, combinations)
    trials: list[Trial] = []
    known = training_numbers(out)
    free = itertools.count(1 + max(known.values(), default=-1))
    for seed in chosen:
        for variant in combinations:
            run_dir = out / RUNS / variant.slug / f"seed{seed}"
            number = known.get((variant.slug, run_dir.name))
            own = [f"training.seed={seed}", f"training.run_dir={json.dumps(str(run_dir))}"]
            config = load_config(config_path, [*overrides, *samples, *variant.overrides, *own])
            trials.append(Trial(next(free) if number is None else number, variant, seed, config))
    _check_distinct(trials[: len(combinations)])
    return Ablation(out, base, factors, combinations, chosen, tuple(trials))


def _common_history(
    config_path: Path, overrides: Sequence[str], combinations: Sequence[Variant]
) -> list[str]:
    """Return the override that gives all variants the initial times that the longest history allows."""
    data = [load_config(config_path, [*overrides, *variant.overrides]).data for variant in combinations]
    if len({one.stored_before for one in data}) == 1:
        return []
    hours = sorted({hour for one in data for hour in one.stored_before})
    return [f"data.required_history_hours={json.dumps(hours)}"]


def _check_distinct(trials: Sequence[Trial]) -> None:
    """Raise ValueError if two variants of one seed have the same settings or the same run directory."""
    for one, other in itertools.combinations(trials, 2):
        same_inputs = one.config.data == other.config.data
        if same_inputs and _varied(one.config) == _varied(other.config):
            first, second = (
                f"--also {trial.variant.label}" if trial.variant.also else trial.variant.label
                for trial in (one, other)
            )
            raise ValueError(f"The variants {first} and {second} are equal. Remove one of them.")
        if one.run_dir == other.run_dir:
            raise ValueError(
                f"Two variants have the run directory {one.run_dir}, which is named after the last part of "
                "their settings. Train one of them with another --out."
            )


def _varied(config: RunConfig) -> tuple[object, ...]:
    """Return the settings beside the inputs that variants can differ in."""
    return config.model, config.optimizer, config.deepspeed.bf16


def claim_folder(ablation: Ablation) -> None:
    """Write the description and the configurations, or check that the folder belongs to this ablation.

    More seeds and more levels than before are allowed.

    Raises:
        ValueError: the folder belongs to something else.
    """
    path = ablation.out / ABLATION_FILE
    if path.is_file():
        _check_same(path, ablation)
    elif ablation.out.exists() and not ablation.out.is_dir():
        raise ValueError(f"{ablation.out} is a file. Choose another --out.")
    elif ablation.out.is_dir() and any(ablation.out.iterdir()):
        raise ValueError(f"{ablation.out} is not empty and contains no ablation. Choose another --out.")
    for trial in ablation.trials:
        _check_run_dir(trial)
    (ablation.out / CONFIGS).mkdir(parents=True, exist_ok=True)
    for trial in ablation.trials:
        write_durably(ablation.config_path(trial), trial.config.to_json() + "\n")
    write_durably(path, _description(ablation).model_dump_json(indent=2) + "\n")


def _check_run_dir(trial: Trial) -> None:
    """Raise ValueError if a run directory belongs to another variant of the same name."""
    if not (trial.run_dir / CONFIG_FILE).is_file():
        return
    found, wanted = read_run_config(trial.run_dir), trial.config
    same_settings = _varied(found) == _varied(wanted)
    if not (same_settings and found.training.seed == wanted.training.seed):
        raise ValueError(
            f"{trial.run_dir} contains another training than {trial}; folders are named after the last part "
            "of settings. Choose another --out."
        )


class Description(Record):
    """Content of `ablation.json`."""

    format_version: Literal[1] = 1
    """Must be 1, which this aqtopo writes."""
    config: dict[str, Any]
    """Varied run, as for `aqtopo train`."""
    factors: dict[str, tuple[str, ...]]
    """Levels by path, the baseline last."""
    seeds: tuple[int, ...]
    """Seeds of each variant."""
    versions: dict[str, str | None]
    """Package versions."""
    written: Time
    """Time of writing."""


def _description(ablation: Ablation) -> Description:
    return Description(
        config=json.loads(ablation.base.to_json()),
        factors={factor.path: tuple(map(format_level, factor.levels)) for factor in ablation.factors},
        seeds=ablation.seeds,
        versions=package_versions(),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_same(path: Path, ablation: Ablation) -> None:
    """Raise ValueError if a folder's description is damaged or that of another ablation."""
    before = read_record(path, Description, f"Choose another --out, or remove {path.parent}.")
    try:
        # Parsed, so that settings added since then have their defaults.
        same_config = RunConfig.model_validate(before.config).digest == ablation.base.digest
    except ValidationError as error:
        raise ValueError(
            f"{describe(error, RunConfig, str(path))}\nChoose another --out, or remove {path.parent}."
        ) from None
    if not (same_config and [*before.factors] == [factor.path for factor in ablation.factors]):
        raise ValueError(
            f"{ablation.out} contains an ablation of another configuration or other factors. Choose another "
            "--out, or remove it."
        )
