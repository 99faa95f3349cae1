"""Checks between the values of a configuration; each yields the wrong value and the accepted ones."""

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

from aqtopo.config.paths import parse
from aqtopo.config.sections import LOCAL_PATH_CELLS, RunSections
from aqtopo.config.strict import Problem
from aqtopo.variables import DYNAMIC_VARIABLES, RESERVED_NAMES, STATIC_VARIABLES, TARGET_VARIABLES, VARIABLES


def _problem(config: RunSections, path: str, allowed: str) -> Problem:
    """Return the problem of the value at a path such as `data.grid.0`."""
    value: Any = config
    for part in parse(path):
        value = value[part] if isinstance(part, int) else getattr(value, part)
    return Problem(parse(path), value, allowed)


def contradictions(config: RunSections) -> Iterator[Problem]:
    """Yield the contradictions between values that are valid on their own."""
    sizes, optimization = (
        (_channels, _inputs, _times, _shapes, _biases),
        (_groups, _learning_rate, _deepspeed),
    )
    for check in (*sizes, *optimization, _batch, _saving, _fine_tuning):
        yield from check(config)


def _channels(config: RunSections) -> Iterator[Problem]:
    data, model = config.data, config.model
    dynamic = tuple(name for name in data.variables if name not in STATIC_VARIABLES)
    weather = tuple(name for name in DYNAMIC_VARIABLES if name not in TARGET_VARIABLES)
    # Accepted names among those of CAQRA; a store's own are checked by `aqtopo.data.metadata.check_fit`.
    published = {"variables": VARIABLES, "targets": TARGET_VARIABLES, "weather_at_horizons": weather}
    chosen = {"forcings": data.forcings, "history_variables": dynamic}
    for field, known in {**published, **chosen}.items():
        names, free = getattr(data, field) or (), field in published
        for place, name in enumerate(names):
            path = f"data.{field}.{place}"
            if name not in known and (name in VARIABLES or not free):
                more = " or of the store's own" if free else ""
                yield _problem(config, path, f"must be one of {', '.join(known)}{more}")
            elif name in RESERVED_NAMES:
                yield _problem(config, path, "must be another name: it has another meaning")
            elif name in names[:place]:
                yield _problem(config, path, "must be named once")
    needed = {"u": model.wind_order, "v": model.wind_order, "elevation": bool(model.elevation_bias)}
    for variable, is_needed in needed.items():
        if is_needed and variable not in data.variables:
            option = "model.elevation_bias" if variable == "elevation" else "model.wind_order"
            allowed = f"must hold {variable}, which {option} needs; add it or set {option} to false"
            yield _problem(config, "data.variables", allowed)
    absent = [name for name in data.targets if name not in data.variables]
    if model.prediction == "tendency" and absent:
        allowed = f'must be "state": a tendency starts from {", ".join(absent)}, not in data.variables'
        yield _problem(config, "model.prediction", allowed)


def _inputs(config: RunSections) -> Iterator[Problem]:
    data = config.data
    for field in ("history_hours", "required_history_hours"):
        if any(later <= earlier for earlier, later in pairwise(getattr(data, field))):
            yield _problem(config, f"data.{field}", "must be ascending, without repetition")
    repeated = [name for place, name in enumerate(config.inputs) if name in config.inputs[:place]]
    lists = (data.variables, data.forcings, data.history_hours, data.history_variables or ())
    own = any(len(set(each)) < len(each) for each in (*lists, data.weather_at_horizons, data.horizons))
    if repeated and not own:  # a repetition within one list is reported there
        yield _problem(config, "data.variables", f"must hold no {repeated[0]}: another input has this name")
    if data.history_variables is not None and not data.history_hours:
        yield _problem(config, "data.history_variables", "must be null without data.history_hours")


def _times(config: RunSections) -> Iterator[Problem]:
    data = config.data
    splits = {split: getattr(data, split) for split in ("train_years", "validation_years", "test_years")}
    for field, values in {"horizons": data.horizons, **splits}.items():
        if any(later <= earlier for earlier, later in pairwise(values)):
            yield _problem(config, f"data.{field}", "must be ascending, without repetition")
    for (first, years), (second, others) in combinations(splits.items(), 2):
        shared = sorted(set(years) & set(others))
        if shared:
            both = ", ".join(map(str, shared))
            allowed = f"must share no year with data.{first}, and {both} is in both"
            yield _problem(config, f"data.{second}", allowed)


MAX_CELLS, MAX_SIDE = 2**26, 2**16
"""Largest number of cells, and of rows or columns: a global grid of 4 km has half of the first."""


def _shapes(config: RunSections) -> Iterator[Problem]:
    model = config.model
    if math.prod(config.data.grid) > MAX_CELLS:
        yield _problem(config, "data.grid", f"must have at most {MAX_CELLS} cells")
    for axis, name in enumerate(("rows", "columns")):
        cells, regions = config.data.grid[axis], model.regions[axis]
        if cells > MAX_SIDE:
            yield _problem(config, f"data.grid.{axis}", f"must be at most {MAX_SIDE}")
        if cells % model.patch:
            yield _problem(config, f"data.grid.{axis}", f"must be a multiple of model.patch = {model.patch}")
        elif (cells // model.patch) % regions:
            patches = cells // model.patch
            yield _problem(config, f"model.regions.{axis}", f"must divide the {patches} {name} of patches")
    if model.local_path and min(config.data.grid) < LOCAL_PATH_CELLS:
        seen = f"{LOCAL_PATH_CELLS} x {LOCAL_PATH_CELLS} cells"
        allowed = (
            f"must be false on a grid of {' x '.join(map(str, config.data.grid))}: each cell sees {seen}"
        )
        yield _problem(config, "model.local_path", allowed)
    for divisor, meaning in ((model.heads, "model.heads"), (4, "the position embedding's sines and cosines")):
        if model.dim % divisor:
            yield _problem(config, "model.dim", f"must be a multiple of {divisor} ({meaning})")
    if not (model.dim * model.mlp_ratio).is_integer():
        yield _problem(config, "model.mlp_ratio", f"times model.dim = {model.dim} must be whole")


def _biases(config: RunSections) -> Iterator[Problem]:
    model = config.model
    blocks = model.bias_blocks
    if sorted(set(blocks)) != list(blocks) or blocks[-1] >= model.depth:
        allowed = f"must name blocks from 0 to {model.depth - 1}, ascending, each once"
        yield _problem(config, "model.bias_blocks", allowed)
    if model.local_heads is not None and not model.local_bias:
        yield _problem(config, "model.local_heads", "must be null without model.local_bias")
    if model.local_heads is not None and model.local_heads > model.heads:
        yield _problem(config, "model.local_heads", f"must be at most model.heads = {model.heads}")


def _groups(config: RunSections) -> Iterator[Problem]:
    names = [group.name for group in config.optimizer.groups]
    for place, name in enumerate(names):
        if name in names[:place]:
            allowed = "must differ from the names of the groups before it"
            yield _problem(config, f"optimizer.groups.{place}.name", allowed)


def _learning_rate(config: RunSections) -> Iterator[Problem]:
    schedule, optimizer = config.schedule, config.optimizer
    if schedule.interval == "epoch" and schedule.warmup_steps:
        allowed = 'must be 0 with schedule.interval = "epoch"; warm up with interval "step"'
        yield _problem(config, "schedule.warmup_steps", allowed)
    lowest = min(config.parameter_groups, key=lambda group: group.lr_multiplier)
    if schedule.eta_min > lowest.lr_multiplier * optimizer.base_lr:
        start = lowest.lr_multiplier * optimizer.base_lr
        allowed = f"must be at most {start:g}, where group {lowest.name} starts: its multiplier x base_lr"
        yield _problem(config, "schedule.eta_min", allowed)


def _deepspeed(config: RunSections) -> Iterator[Problem]:
    if config.deepspeed.bf16.enabled and config.deepspeed.fp16.enabled:
        yield _problem(config, "deepspeed.fp16.enabled", "must be false, since bf16 is enabled")
    offload = config.deepspeed.zero_optimization.offload_optimizer
    if offload is None or offload.device == "none":
        return
    chosen = config.optimizer.implementation
    if chosen == "fused_adam":
        allowed = 'must be "cpu_adam" or "torch" with offload_optimizer: the fused one works on the GPU'
        yield _problem(config, "optimizer.implementation", allowed)
    elif chosen == "torch" and config.deepspeed.zero_force_ds_cpu_optimizer:
        allowed = 'must be false with offload_optimizer, or optimizer.implementation must be "cpu_adam"'
        yield _problem(config, "deepspeed.zero_force_ds_cpu_optimizer", allowed)


def _batch(config: RunSections) -> Iterator[Problem]:
    block, world = config.deepspeed, config.world_size
    given, micro, accumulation = (
        block.train_batch_size, block.train_micro_batch_size_per_gpu, block.gradient_accumulation_steps,
    )  # fmt: skip
    if given is None and micro is None:
        allowed = "must be given, or deepspeed.train_batch_size"
        yield _problem(config, "deepspeed.train_micro_batch_size_per_gpu", allowed)
    if given is None or given == config.train_batch:
        return
    if micro is not None and accumulation is not None:
        allowed = (
            f"must be {config.train_batch}: micro-batch {micro} x accumulation {accumulation} x world size "
            f"{world}; or leave it out"
        )
    elif micro is not None:
        allowed = f"must be a multiple of {micro * world}: micro-batch {micro} x world size {world}"
    else:
        steps = accumulation or 1
        allowed = f"must be a multiple of {steps * world}: accumulation {steps} x world size {world}"
    yield _problem(config, "deepspeed.train_batch_size", allowed)


def _saving(config: RunSections) -> Iterator[Problem]:
    every, kept = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
    if kept is not None and (every is None or kept % every):
        allowed = f"must be a multiple of checkpoint.every_steps = {every}"
        if every is None:
            allowed = "must be null without checkpoint.every_steps"
        yield _problem(config, "checkpoint.keep_every_steps", allowed)


def _fine_tuning(config: RunSections) -> Iterator[Problem]:
    if config.training.fresh_weights and config.training.initial_weights is None:
        yield _problem(config, "training.fresh_weights", "must be [] without training.initial_weights")
