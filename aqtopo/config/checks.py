"""Checks between the sections of a configuration; each yields the value to change and what is allowed."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from aqtopo.config.sections import RunSections
from aqtopo.config.strict import Path, Problem
from aqtopo.variables import TARGET_VARIABLES, VARIABLES


def contradictions(config: RunSections) -> Iterator[Problem]:
    """Yield the contradictions between values that are valid on their own."""
    checks = (_channels, _times, _shapes, _biases, _groups, _learning_rate, _deepspeed, _batch, _saving)
    for check in checks:
        yield from check(config)


def _channels(config: RunSections) -> Iterator[Problem]:
    data, model = config.data, config.model
    yield from _known(("data", "variables"), data.variables, tuple(VARIABLES))
    yield from _known(("data", "targets"), data.targets, TARGET_VARIABLES)
    needed = {"u": model.wind_order, "v": model.wind_order, "elevation": bool(model.elevation_bias)}
    for variable, is_needed in needed.items():
        if is_needed and variable not in data.variables:
            option = "model.elevation_bias" if variable == "elevation" else "model.wind_order"
            yield Problem(
                ("data", "variables"),
                data.variables,
                f"must hold {variable}, which {option} needs; add it or set {option} to false",
            )
    absent = [name for name in data.targets if name not in data.variables]
    if model.prediction == "tendency" and absent:
        allowed = f'must be "state": a tendency starts from {", ".join(absent)}, not in data.variables'
        yield Problem(("model", "prediction"), model.prediction, allowed)


def _known(path: Path, names: Sequence[str], known: Sequence[str]) -> Iterator[Problem]:
    for place, name in enumerate(names):
        if name not in known:
            yield Problem((*path, place), name, f"must be one of {', '.join(known)}")
        elif name in names[:place]:
            yield Problem((*path, place), name, "must be named once")


def _times(config: RunSections) -> Iterator[Problem]:
    data = config.data
    splits = {split: getattr(data, split) for split in ("train_years", "validation_years", "test_years")}
    for field, values in {"horizons": data.horizons, **splits}.items():
        if any(later <= earlier for earlier, later in pairwise(values)):
            yield Problem(("data", field), values, "must be ascending, without repetition")
    for (first, years), (second, others) in combinations(splits.items(), 2):
        shared = sorted(set(years) & set(others))
        if shared:
            both = ", ".join(map(str, shared))
            yield Problem(
                ("data", second), others, f"must share no year with data.{first}, and {both} is in both"
            )


def _shapes(config: RunSections) -> Iterator[Problem]:
    model = config.model
    for axis, name in enumerate(("rows", "columns")):
        cells, regions = config.data.grid[axis], model.regions[axis]
        if cells % model.patch:
            yield Problem(("data", "grid", axis), cells, f"must be a multiple of model.patch = {model.patch}")
        elif (cells // model.patch) % regions:
            patches = cells // model.patch
            yield Problem(("model", "regions", axis), regions, f"must divide the {patches} {name} of patches")
    for divisor, meaning in ((model.heads, "model.heads"), (4, "the position embedding's sines and cosines")):
        if model.dim % divisor:
            allowed = f"must be a multiple of {divisor} ({meaning})"
            yield Problem(("model", "dim"), model.dim, allowed)
    if not (model.dim * model.mlp_ratio).is_integer():
        yield Problem(("model", "mlp_ratio"), model.mlp_ratio, f"times model.dim = {model.dim} must be whole")


def _biases(config: RunSections) -> Iterator[Problem]:
    model = config.model
    blocks = model.bias_blocks
    if sorted(set(blocks)) != list(blocks) or blocks[-1] >= model.depth:
        allowed = f"must name blocks from 0 to {model.depth - 1}, ascending, each once"
        yield Problem(("model", "bias_blocks"), blocks, allowed)
    if model.local_heads is not None and not model.local_bias:
        allowed = "must be null without model.local_bias"
        yield Problem(("model", "local_heads"), model.local_heads, allowed)
    if model.local_heads is not None and model.local_heads > model.heads:
        yield Problem(
            ("model", "local_heads"), model.local_heads, f"must be at most model.heads = {model.heads}"
        )
    if model.sector_embedding and not model.wind_order:
        allowed = "must be false without model.wind_order, which defines the sectors"
        yield Problem(("model", "sector_embedding"), True, allowed)


def _groups(config: RunSections) -> Iterator[Problem]:
    names = [group.name for group in config.optimizer.groups]
    for place, name in enumerate(names):
        if name in names[:place]:
            path = ("optimizer", "groups", place, "name")
            yield Problem(path, name, "must differ from the names of the groups before it")


def _learning_rate(config: RunSections) -> Iterator[Problem]:
    schedule, optimizer = config.schedule, config.optimizer
    if schedule.interval == "epoch" and schedule.warmup_steps:
        yield Problem(
            ("schedule", "warmup_steps"),
            schedule.warmup_steps,
            'must be 0 with schedule.interval = "epoch"; warm up with interval "step"',
        )
    lowest = min(optimizer.groups, key=lambda group: group.lr_multiplier)
    if schedule.eta_min > lowest.lr_multiplier * optimizer.base_lr:
        start = lowest.lr_multiplier * optimizer.base_lr
        yield Problem(
            ("schedule", "eta_min"),
            schedule.eta_min,
            f"must be at most {start:g}, where group {lowest.name} starts: its multiplier x base_lr",
        )


def _deepspeed(config: RunSections) -> Iterator[Problem]:
    if config.deepspeed.bf16.enabled and config.deepspeed.fp16.enabled:
        yield Problem(("deepspeed", "fp16", "enabled"), True, "must be false, since bf16 is enabled")
    offload = config.deepspeed.zero_optimization.offload_optimizer
    if offload is None or offload.device == "none":
        return
    chosen = config.optimizer.implementation
    if chosen == "fused_adam":
        allowed = 'must be "cpu_adam" or "torch" with offload_optimizer: the fused one works on the GPU'
        yield Problem(("optimizer", "implementation"), chosen, allowed)
    elif chosen == "torch" and config.deepspeed.zero_force_ds_cpu_optimizer:
        allowed = 'must be false with offload_optimizer, or optimizer.implementation must be "cpu_adam"'
        yield Problem(("deepspeed", "zero_force_ds_cpu_optimizer"), True, allowed)


def _batch(config: RunSections) -> Iterator[Problem]:
    given = config.deepspeed.train_batch_size
    if given is not None and given != config.train_batch:
        yield Problem(
            ("deepspeed", "train_batch_size"),
            given,
            f"must be {config.train_batch}: micro-batch {config.micro_batch} x accumulation"
            f" {config.accumulation} x world size {config.world_size}; or leave it out",
        )


def _saving(config: RunSections) -> Iterator[Problem]:
    every, kept = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
    if kept is not None and (every is None or kept % every):
        allowed = f"must be a multiple of checkpoint.every_steps = {every}"
        if every is None:
            allowed = "must be null without checkpoint.every_steps"
        yield Problem(("checkpoint", "keep_every_steps"), kept, allowed)
