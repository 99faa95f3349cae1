"""Everything that may be wrong in a configuration, and the message that its author must read."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aqtopo.config import RunConfig, load_config
from aqtopo.config.errors import describe

MISSING = object()
"""Stands for a key that is taken out."""

CHANNELS = "u, v, temp, rh, psfc, pm10, so2, no2, co, o3, lat2d, lon2d, pm25, elevation, population"
BLOCKS = "name, description, data, model, optimizer, schedule, training, checkpoint, monitors, deepspeed"
ONE_GROUP = {"name": "all", "lr_multiplier": 1.0, "parameters": ["*"]}

UNKNOWN_KEYS: list[tuple[Any, ...]] = [
    ("deepspeed.gradient_cliping", 1.0, "unknown key; did you mean gradient_clipping?"),
    ("deepspeed.zero_optimisation", {"stage": 2}, "unknown key; did you mean zero_optimization?"),
    ("deepspeed.zero_optimization.overlap_com", True, "unknown key; did you mean overlap_comm?"),
    ("deepspeed.bf16.enable", True, "unknown key; did you mean enabled?"),
    ("monitors.wandb.projet", "x", "unknown key; did you mean project?"),
    (
        "deepspeed.micro",
        2,
        "unknown key; known here: train_micro_batch_size_per_gpu, gradient_accumulation_steps",
    ),
    ("model.dept", 3, "unknown key; did you mean depth?"),
    ("data.batch", 3, "unknown key; known here: store, grid, variables"),
    ("training.base_lr", 1e-3, "unknown key; it belongs to optimizer.base_lr"),
    ("dim", 768, "unknown key; it belongs to model.dim"),
    ("optimiser", {}, "unknown key; did you mean optimizer?"),
    ("whatever", 1, f"unknown key; known here: {BLOCKS}"),
]

REFUSED_KEYS: list[tuple[Any, ...]] = [
    (
        "deepspeed.optimizer",
        {"type": "AdamW"},
        "not allowed: set it in the section `optimizer`",
    ),
    ("deepspeed.scheduler", {}, "not allowed: set the learning rate in the section `schedule`"),
    ("deepspeed.activation_checkpointing", {}, "not allowed: use model.gradient_checkpointing"),
    ("deepspeed.tensorboard", {"enabled": True}, "not allowed: write monitors.tensorboard"),
    ("deepspeed.csv_monitor", {"enabled": True}, "not allowed: metrics.jsonl in the run directory"),
    ("deepspeed.bfloat16", {"enabled": True}, "not allowed: an old name; write bf16"),
    ("deepspeed.prescale_gradients", True, "not allowed: gradients are always averaged"),
    ("deepspeed.zero_optimization.offload_param", {}, "not allowed: it needs ZeRO stage 3"),
    ("deepspeed.checkpoint.load_universal", True, "not allowed: aqtopo sets it when it restores a run"),
]

TYPES: list[tuple[Any, ...]] = [
    ("model.dim", "768", "must be a whole number"),
    ("model.depth", 6.0, "must be a whole number"),
    ("model.wind_order", "yes", "must be true or false"),
    ("model.wind_order", 1, "must be true or false"),
    ("optimizer.base_lr", "1e-4", "must be a number"),
    ("optimizer.base_lr", True, "must be a number"),
    ("model.alpha", float("nan"), "must be a finite number"),
    ("deepspeed.fp16.loss_scale", float("inf"), "must be a finite number"),
    ("data.horizons", 24, "must be a list"),
    ("data.grid[1]", 32.5, "must be a whole number"),
    ("description", None, "must be a string"),
    ("model", 3, "must be an object"),
    ("deepspeed.zero_optimization", True, "must be an object"),
    ("deepspeed.zero_optimization.reduce_bucket_size", 5.5, "must be a whole number"),
]

RANGES: list[tuple[Any, ...]] = [
    ("optimizer.base_lr", 0, "must be greater than 0"),
    ("optimizer.weight_decay", -0.01, "must be at least 0"),
    ("deepspeed.zero_optimization.allgather_bucket_size", 1001, "must be a multiple of 2"),
    ("deepspeed.zero_optimization.allgather_bucket_size", 2, "must be at least 1000"),
    ("optimizer.betas[1]", 1.0, "must be less than 1"),
    ("optimizer.eps", 0, "must be greater than 0"),
    ("schedule.eta_min", -1e-6, "must be at least 0"),
    ("model.dropout", 1.0, "must be less than 1"),
    ("model.patch", 0, "must be at least 1"),
    ("model.dim", 2**31, "must be at most 65536"),
    ("model.depth", 10**9, "must be at most 1000"),
    ("model.heads", 2**63, "must be at most 65536"),
    ("training.epochs", 10**20, "must be at most 9007199254740991"),
    ("model.sectors", 1, "must be at least 2"),
    ("training.epochs", 0, "must be at least 1"),
    ("training.validate_every", 0, "must be at least 1"),
    ("training.patience", 0, "must be at least 1"),
    ("training.seed", 2**32, "must be less than 4294967296"),
    ("checkpoint.keep_best", 0, "must be at least 1"),
    ("checkpoint.every_steps", 0, "must be at least 1"),
    ("checkpoint.keep_every_steps", 0, "must be at least 1"),
    ("data.workers", -1, "must be at least 0"),
    ("data.time_stride_hours", 0, "must be at least 1"),
    ("data.train_years[0]", 13, "must be at least 1900"),
    ("deepspeed.gradient_clipping", -1.0, "must be at least 0"),
    ("deepspeed.train_micro_batch_size_per_gpu", 0, "must be at least 1"),
    ("deepspeed.steps_per_print", 0, "must be at least 1"),
]

CHOICES: list[tuple[Any, ...]] = [
    (
        "deepspeed.zero_optimization.stage",
        3,
        "must be 2: saving, resuming and the memory plan support no other stage",
    ),
    (
        "deepspeed.zero_optimization.stage",
        1,
        "must be 2: saving, resuming and the memory plan support no other stage",
    ),
    (
        "deepspeed.zero_optimization.round_robin_gradients",
        True,
        "must be false: it reorders the flat buffers",
    ),
    ("deepspeed.zero_optimization.compute_grad_norm", False, "must be true: every step logs the norm"),
    ("deepspeed.bf16.check_grad_overflow", False, "must be true: an update with a loss or gradient that"),
    (
        "deepspeed.zero_optimization.offload_optimizer",
        {"device": "nvme"},
        'must be "none" or "cpu"',
        "deepspeed.zero_optimization.offload_optimizer.device",
    ),
    ("deepspeed.communication_data_type", "int8", 'must be "fp32", "bf16" or "fp16"'),
    ("optimizer.name", "lamb", 'must be "adamw"'),
    ("schedule.interval", "batch", 'must be "epoch" or "step"'),
    ("model.elevation_bias", True, 'must be "published", "uphill" or false'),
    ("model.lead_time", "both", 'must be "encoder" or "decoder"'),
    ("model.prediction", "change", 'must be "state" or "tendency"'),
    ("data.worker_start", "fork", 'must be "forkserver" or "spawn"'),
    ("data.normalization", "none", 'must be "dataset" or "topoflow"'),
]

LENGTHS_AND_NAMES: list[tuple[Any, ...]] = [
    ("data.grid", [16, 32, 2], "must hold at most 2 items"),
    ("data.grid", [16], "missing, and required", "data.grid[1]"),
    ("data.test_years", [], "must hold at least 1 item"),
    ("optimizer.groups", [], "must hold at least 1 item"),
    ("data.store", "", "must not be empty"),
    (
        "training.run_dir",
        "runs/[1]",
        "(folder of this run's results, relative to the working directory; without",
    ),
    ("training.run_dir", "", "(folder of this run's results"),
    ("name", "a b", "must match ^[A-Za-z0-9][A-Za-z0-9._-]*$ (the run's name: letters"),
    (
        "optimizer.groups",
        [ONE_GROUP | {"name": "A"}],
        "(name in logs and checkpoints: lower-case",
        "optimizer.groups[0].name",
    ),
]

MISSING_KEYS: list[tuple[Any, ...]] = [
    ("data", MISSING, "missing, and required (samples and their loading)"),
    ("data.store", MISSING, "missing, and required (path of the zarr store"),
    ("optimizer.base_lr", MISSING, "missing, and required (learning rate after warm-up"),
    ("training.run_dir", MISSING, "missing, and required (folder of this run's results"),
    ("deepspeed.zero_optimization", MISSING, "missing, and required (settings of ZeRO stage 2)"),
]

CONTRADICTIONS: list[tuple[Any, ...]] = [
    ("data.variables[2]", "../sky", "must match ^[A-Za-z]"),
    ("data.variables[2]", "mask", "must be another name: it has another meaning"),
    ("data.variables[1]", "u", "must be named once"),
    ("data.variables", ["u", "elevation"], "must hold v, which model.wind_order needs"),
    ("data.variables", ["u", "v"], "must hold elevation, which model.elevation_bias needs"),
    ("data.targets[0]", "temp", "must be one of pm25, pm10, so2, no2, co, o3 or of the store's own"),
    ("data.horizons", [24, 12], "must be ascending, without repetition"),
    (
        "data.weather_at_horizons",
        ["o3"],
        "must be one of u, v, temp, rh, psfc",
        "data.weather_at_horizons[0]",
    ),
    ("data.weather_at_horizons", ["u", "u"], "must be named once", "data.weather_at_horizons[1]"),
    ("data.horizons", [12, 12], "must be ascending, without repetition"),
    ("data.train_years", [2014, 2013], "must be ascending, without repetition"),
    ("data.validation_years", [2014], "must share no year with data.train_years, and 2014 is in both"),
    ("data.test_years", [2017, 2018], "must share no year with data.validation_years, and 2017 is in both"),
    ("data.grid[0]", 17, "must be a multiple of model.patch = 2"),
    ("data.grid[1]", 2**20, "must be at most 65536"),
    ("model.regions[1]", 3, "must divide the 16 columns of patches"),
    ("checkpoint.keep_every_steps", 10, "must be null without checkpoint.every_steps"),
    (
        "checkpoint",
        {"every_steps": 4, "keep_every_steps": 10},
        "must be a multiple of checkpoint.every_steps = 4",
        "checkpoint.keep_every_steps",
    ),
    ("model.bias_blocks", [0, 9], "must name blocks from 0 to"),
    ("model.bias_blocks", [1, 0], "ascending, each once"),
    ("model.local_heads", 1, "must be null without model.local_bias"),
    ("model.dim", 66, "must be a multiple of 4 (model.heads)"),
    ("model.mlp_ratio", 1.01, "times model.dim = 64 must be whole"),
    (
        "optimizer.groups",
        [ONE_GROUP, ONE_GROUP],
        "must differ from the names of the groups before it",
        "optimizer.groups[1].name",
    ),
    ("schedule.eta_min", 2e-4, "must be at most 0.0001, where group vit_blocks starts"),
    ("schedule.interval", "epoch", 'must be 0 with schedule.interval = "epoch"', "schedule.warmup_steps"),
    ("deepspeed.train_batch_size", 12, "must be a multiple of 8: micro-batch 4 x world size 2"),
    (
        "deepspeed",
        {"train_batch_size": 9, "zero_optimization": {"stage": 2}},
        "must be a multiple of 2: accumulation 1 x world size 2",
        "deepspeed.train_batch_size",
    ),
    (
        "deepspeed",
        {"gradient_accumulation_steps": 2, "zero_optimization": {"stage": 2}},
        "must be given, or deepspeed.train_batch_size",
        "deepspeed.train_micro_batch_size_per_gpu",
    ),
    (
        "deepspeed.zero_optimization.offload_optimizer",
        {"device": "cpu"},
        "must be false with offload_optimizer",
        "deepspeed.zero_force_ds_cpu_optimizer",
    ),
]


class Case(NamedTuple):
    """The value to put at `path`, what the message must say, and the place it must name if not `path`."""

    path: str
    value: object
    allowed: str
    named: str | None = None


TABLES = [
    UNKNOWN_KEYS,
    REFUSED_KEYS,
    TYPES,
    RANGES,
    CHOICES,
    LENGTHS_AND_NAMES,
    MISSING_KEYS,
    CONTRADICTIONS,
]
CASES = [Case(*row) for table in TABLES for row in table]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path}={case.value!r:.20}")
def test_a_bad_value_is_refused_with_file_path_value_and_what_is_allowed(
    document: dict[str, Any], write: Callable[[object], str], case: Case
) -> None:
    change(document, case.path, case.value)
    with pytest.raises(ValueError, match=r"^run\.json: ") as caught:
        load_config(write(document))
    start = f"run.json: {case.named or case.path}"
    lines = [
        line for line in str(caught.value).splitlines() if line.startswith((f"{start} = ", f"{start}: "))
    ]
    assert any(case.allowed in line for line in lines), str(caught.value)


def test_every_error_has_its_own_line_and_none_is_reported_twice(
    document: dict[str, Any], write: Callable[[object], str]
) -> None:
    change(document, "model.dim", "wide")
    change(document, "training.epochs", 0)
    change(document, "optimizer.groups", [{"name": "all", "lr_multiplier": 0, "parameters": ["*"]}])
    with pytest.raises(ValueError, match="model") as caught:
        load_config(write(document))
    assert str(caught.value).splitlines() == [
        'run.json: model.dim = "wide": must be a whole number',
        "run.json: optimizer.groups[0].lr_multiplier = 0: must be greater than 0",
        "run.json: training.epochs = 0: must be at least 1",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("forcings", ["insolation", "insolation"]),
        ("history_hours", [6, 6]),
        ("weather_at_horizons", ["u", "u"]),
    ],
)
def test_a_repeated_input_is_one_error_at_its_own_place(
    document: dict[str, Any], write: Callable[[object], str], field: str, value: list[object]
) -> None:
    change(document, f"data.{field}", value)
    with pytest.raises(ValueError, match=f"data.{field}") as caught:
        load_config(write(document))
    assert len(str(caught.value).splitlines()) == 1


def test_two_precisions_at_once_are_refused(document: dict[str, Any], write: Callable[[object], str]) -> None:
    document["deepspeed"] |= {"bf16": {"enabled": True}, "fp16": {"enabled": True}}
    with pytest.raises(
        ValueError, match=r"deepspeed\.fp16\.enabled = true: must be false, since bf16 is enabled"
    ):
        load_config(write(document))


def test_a_long_value_is_cut(document: dict[str, Any], write: Callable[[object], str]) -> None:
    document["description"] = ["x"] * 1000
    with pytest.raises(ValueError, match=r'description = \["x", .*\.\.\.: must be a string$') as caught:
        load_config(write(document))
    assert len(str(caught.value)) < 150


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
DEMO = json.loads(Path("ds_configs/demo_cpu.json").read_text(encoding="utf-8"))
PLACES = [(block,) for block in DEMO] + [
    (block, key) for block, values in DEMO.items() if isinstance(values, dict) for key in (*values, "new")
]


@given(place=st.sampled_from(PLACES), value=JSON)
def test_whatever_stands_anywhere_is_accepted_or_refused_in_words(
    place: tuple[str, ...], value: object
) -> None:
    document = copy.deepcopy(DEMO)
    parent = document if len(place) == 1 else document[place[0]]
    parent[place[-1]] = value
    try:
        RunConfig.model_validate(document)
    except ValidationError as error:
        lines = describe(error, RunConfig, "run.json").split("\nrun.json: ")
        assert lines[0].startswith("run.json: ")
        for line in lines:
            assert re.match(r"(run\.json: )?\S.*?( = .+)?: [a-zA-Z]", line, re.DOTALL)
            assert "Input should" not in line


def change(document: dict[str, Any], path: str, value: object) -> None:
    """Set or take out the value at a path such as `data.grid[1]`, making what is missing on the way."""
    defaults: dict[str, list[Any]] = {
        "variables": CHANNELS.split(", "),
        "targets": ["pm25", "o3"],
        "betas": [0.9, 0.999],
    }
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    name, _, index = last.partition("[")
    if index:
        document.setdefault(name, defaults.get(name, []))[int(index[:-1])] = value
    elif value is MISSING:
        del document[name]
    else:
        document[name] = value
