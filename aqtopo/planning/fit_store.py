"""Configuration of a run that fits a store, made from a shipped one: grid, years, variables, patch, regions.

What the store does not determine, such as the size of the model and the learning rates, stays the same.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqtopo.config import RunConfig, load_config
from aqtopo.config.files import checked_config, read_document
from aqtopo.config.sections import LOCAL_PATH_CELLS
from aqtopo.data.samples import StepPlan, sample_table, usable_times
from aqtopo.data.schema import raise_store_error
from aqtopo.data.store import Store, open_store
from aqtopo.distributed.launch import Launch
from aqtopo.shipped import shipped_folder
from aqtopo.training.prepare import NEVER, ResumeOptions, prepare
from aqtopo.variables import VARIABLES

TEMPLATES = {"demo": "demo_cpu", "small": "small_1gpu", "lumi": "lumi_400gpu"}
"""Short names of shipped configurations."""


@dataclass(frozen=True)
class Fitted:
    """A checked configuration, its JSON without defaults, and a line about each choice."""

    config: RunConfig
    document: dict[str, Any]
    choices: tuple[str, ...]

    def to_json(self) -> str:
        """Return the file's text, with each list on one line."""
        text = json.dumps(self.document, indent=2)
        return (
            re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
            .replace("[ ", "[")
            .replace(" ]", "]")
            + "\n"
        )


def fit_store(like: str, store: Path, file: Path, overrides: Iterable[str] = ()) -> Fitted:
    """Fit a shipped configuration to a store, and check the run as `train` does before its start.

    Args:
        like: short name or name of a shipped configuration.
        store: folder of the data store.
        file: future file of the configuration; its name without suffix becomes the run's name.
        overrides: values `a.b=value` that are set at last.

    Raises:
        ValueError: there is no such configuration or store, or no run of this kind fits the store.
    """
    template = _template(like)
    opened = open_store(store)
    base, document = load_config(template), read_document(template)
    document.pop("$schema", None)
    document |= {"name": file.stem, "description": f"Like {template.stem}, for the store {store}."}
    document["data"] |= {"store": str(store), "grid": list(opened.grid)}
    document["data"].pop("normalization", None)  # the store's own statistics
    document["training"]["run_dir"] = f"runs/{file.stem}"
    choices = [
        *_fit_years(document["data"], base, opened),
        *_fit_channels(document["data"], base, opened),
        *_fit_tokens(document.setdefault("model", {}), base, opened.grid),
    ]
    overrides = list(overrides)
    config = checked_config(document, file, overrides)
    choices += _fit_length(document, base, config, opened)
    config = checked_config(document, file, overrides)
    # The number of processes is checked at the start of the run.
    launch = Launch("alone", 0, 0, config.world_size, 1, "127.0.0.1", 0)
    prepare(config, launch, ResumeOptions(NEVER))
    sample_table(config, opened.times, "test")
    return Fitted(config, document, (*choices, _samples_per_step(config)))


def _template(like: str) -> Path:
    """Return the file of a shipped configuration.

    Raises:
        ValueError: there is none of this name.
    """
    folder = shipped_folder("ds_configs")
    path = folder / f"{TEMPLATES.get(like, like)}.json"
    names = sorted(file.stem for file in folder.glob("*.json") if file.stem != "schema")
    if path.stem not in names:
        raise ValueError(
            f"there is no configuration {like!r}. Choose {', '.join(TEMPLATES)} or one of {', '.join(names)}."
        )
    return path


def _fit_years(data: dict[str, Any], base: RunConfig, store: Store) -> list[str]:
    """Train on the years of the store's statistics, if two others are left; else on all but two."""
    horizons, before = base.data.horizons, base.data.stored_before
    usable = [y for y in store.years if usable_times(store.times, [y], horizons, 1, before).size]
    if len(usable) < 3:
        raise_store_error(
            store.path,
            f"has {len(usable)} year(s) with hours for all horizons ({_listed(horizons)} h) and inputs of a "
            f"sample, and a run needs one for training, one for validation and one for the test: "
            f"{_listed(usable) or 'none'}",
            "Write a store with more years.",
        )
    described = [sorted(each.years) for each in store.statistics]
    fitting = [y for y in described if set(y) <= set(usable) and len(y) <= len(usable) - 2]
    train = max(fitting, key=len) if fitting else usable[:-2]
    *unused, validation, test = [year for year in usable if year not in train]
    data |= {"train_years": train, "validation_years": [validation], "test_years": [test]}
    origin = ", the years of the store's statistics" if fitting else ""
    also = f"; unused: {_listed(unused)}" if unused else ""
    return [f"training {_listed(train)}{origin}; validation {validation}; test {test}{also}"]


def _fit_channels(data: dict[str, Any], base: RunConfig, store: Store) -> list[str]:
    """Select the channels that have values in the training years: the usual ones, then the store's own."""
    chosen = [each for each in store.statistics if set(each.years) == set(data["train_years"])]
    mean = chosen[0].mean if chosen else dict.fromkeys(store.variables, 0.0)
    known = {n: v for n, v in store.variables.items() if math.isfinite(mean.get(n, math.nan))}
    own = [name for name in known if name not in VARIABLES]
    hourly = [name for name, variable in known.items() if variable.kind == "dynamic"]
    pollutants = [name for name, variable in known.items() if variable.pollutant]
    wanted = {
        "variables": [*base.data.variables, *own],
        "targets": [*base.data.targets, *(name for name in own if name in pollutants)],
        "weather_at_horizons": list(base.data.weather_at_horizons),
        "history_variables": [*(base.data.history_variables or [*base.data.variables, *own])],
    }
    accepted = {"variables": known, "targets": pollutants, "history_variables": hourly}
    accepted["weather_at_horizons"] = [name for name in hourly if name not in pollutants]
    if not base.data.history_hours or (base.data.history_variables is None and not own):
        del wanted["history_variables"]
    for field, names in wanted.items():
        kept = [name for name in dict.fromkeys(names) if name in accepted[field]]
        if kept != list(getattr(base.data, field) or ()):
            data[field] = kept
    if not data.get("targets", True):
        raise_store_error(
            store.path,
            "describes no channel with values as a pollutant, so there is nothing to forecast",
            "Write it again with `pollutant=True` for one.",
        )
    absent = [name for name in base.data.channels if name not in known]
    lines = [f"without {', '.join(absent)}: the store has no values of them"] if absent else []
    return [*lines, f"with the store's own {', '.join(own)}"] if own else lines


def _fit_tokens(model: dict[str, Any], base: RunConfig, grid: tuple[int, int]) -> list[str]:
    """Set the nearest patch that divides the grid, regions of nearly the same patches, and the local path."""
    patch = _nearest_divisor(math.gcd(*grid), base.model.patch)
    patches = [cells // patch for cells in grid]
    regions = [
        _nearest_divisor(number, number / size)
        for number, size in zip(patches, base.region_patches, strict=True)
    ]
    model |= {"patch": patch, "regions": regions}
    lines = [
        f"{' x '.join(map(str, grid))} cells; patch {patch}: {math.prod(patches)} tokens in "
        f"{' x '.join(map(str, regions))} regions"
    ]
    if base.model.local_path and min(grid) < LOCAL_PATH_CELLS:
        model["local_path"] = False
        lines.append(f"without the local path, which needs {LOCAL_PATH_CELLS} x {LOCAL_PATH_CELLS} cells")
    return lines


def _nearest_divisor(number: int, wanted: float) -> int:
    """Return the divisor with the ratio to `wanted` that is nearest to 1; of two, the larger."""
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    return min(divisors, key=lambda each: (abs(math.log(each / wanted)), -each))


def _fit_length(document: dict[str, Any], base: RunConfig, config: RunConfig, store: Store) -> list[str]:
    """Validate at least once an epoch, and limit the warm-up of `base` to a tenth of the run.

    Raises:
        ValueError: an epoch has no micro-step.
    """
    plan = StepPlan.from_config(config, len(sample_table(config, store.times, "train")))
    every = min(config.training.validate_every, plan.micro_steps_per_epoch)
    document["training"]["validate_every"] = every
    steps, asked = config.training.epochs * plan.steps_per_epoch, config.schedule.warmup_steps
    if asked <= steps // 10 or asked != base.schedule.warmup_steps:
        return []
    document["schedule"]["warmup_steps"] = steps // 10
    return [f"warm-up of {steps // 10} steps instead of {asked}, a tenth of the run's {steps}"]


def _samples_per_step(config: RunConfig) -> str:
    nodes, ranks = config.training.nodes, config.training.ranks_per_node
    return (
        f"{config.train_batch} samples per step: micro-batch {config.micro_batch} x accumulation "
        f"{config.accumulation} x {nodes} node(s) x {ranks} rank(s)"
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
