"""Values that a configuration derives, and equality of two configurations."""

import pickle
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig as Theirs
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aqtopo.config import RunConfig, load_config
from aqtopo.training.engine import batch_fields
from aqtopo.variables import HORIZONS_H, INPUT_VARIABLES, TARGET_VARIABLES

Document = dict[str, Any]


def test_the_reference_run_has_its_published_sizes() -> None:
    config = load_config("ds_configs/resume_reference.json")
    assert config.world_size == 400
    assert config.train_batch == 1600
    assert config.patch_grid == (64, 128)
    assert config.tokens == 8192
    assert config.region_patches == (2, 4)
    assert config.model.head_dim == 96
    assert config.model.hidden_dim == 3072
    assert config.optimizer.base_lr == 1e-4
    assert (config.schedule.interval, config.schedule.eta_min, config.training.epochs) == ("epoch", 1e-6, 10)
    assert config.deepspeed.precision == "fp32"


def test_the_full_run_and_its_baseline_differ_in_the_order_of_tokens_only() -> None:
    wind = load_config("ds_configs/lumi_400gpu.json").model_dump()
    rows = load_config("ds_configs/lumi_400gpu_rowmajor.json").model_dump()
    assert wind["model"].pop("wind_order") is True
    assert rows["model"].pop("wind_order") is False
    for config in (wind, rows):
        del config["name"], config["description"], config["training"]["run_dir"]
    assert wind == rows
    assert (wind["training"]["epochs"], wind["optimizer"]["base_lr"], wind["schedule"]["warmup_steps"]) == (
        30,
        2e-4,
        500,
    )


@pytest.mark.parametrize(
    ("name", "world_size"),
    [("demo_cpu", 2), ("lumi_64gpu_debug", 64), ("lumi_128gpu_wind", 128), ("lumi_400gpu", 400)],
)
def test_runs_with_wind_order_and_elevation_bias(name: str, world_size: int) -> None:
    config = load_config(f"ds_configs/{name}.json")
    assert config.name == name
    assert config.training.run_dir == f"runs/{name}"
    assert config.world_size == world_size
    assert config.model.wind_order
    assert config.model.elevation_bias == "published"


def test_what_is_left_out_has_its_default(document: Document) -> None:
    config = RunConfig.model_validate(document)
    assert config.data.variables == INPUT_VARIABLES
    assert config.data.targets == TARGET_VARIABLES
    assert config.data.horizons == HORIZONS_H
    assert [(group.name, group.lr_multiplier) for group in config.optimizer.groups] == [
        ("vit_blocks", 0.1),
        ("wind_embedding", 2.0),
        ("head", 0.5),
        ("others", 1.0),
    ]
    assert config.accumulation == 1


def test_nothing_can_be_changed_afterwards(document: Document) -> None:
    config = RunConfig.model_validate(document)
    with pytest.raises(ValidationError, match="frozen"):
        config.model.dim = 128  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.data.horizons.append(120)  # type: ignore[attr-defined]


def test_a_resolved_configuration_reads_back_the_same(document: Document) -> None:
    config = RunConfig.model_validate(document)
    again = RunConfig.model_validate_json(config.to_json())
    assert again == config
    assert again.digest == config.digest
    assert again.deepspeed.verbatim() == config.deepspeed.verbatim()
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_spelled_out_default_does_not_change_the_digest(document: Document) -> None:
    before = RunConfig.model_validate(document).digest
    document["data"]["horizons"] = [12, 24, 48, 96]
    document["model"]["wind_order"] = True
    assert RunConfig.model_validate(document).digest == before


def test_the_schema_reference_is_ignored(document: Document) -> None:
    plain = RunConfig.model_validate(document)
    assert RunConfig.model_validate(document | {"$schema": "schema.json"}) == plain
    assert "$schema" not in plain.to_json()


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("model", "alpha", 2.5),
        ("data", "normalization", "topoflow"),
        ("training", "seed", 1),
        ("deepspeed", "gradient_clipping", 0.5),
    ],
)
def test_every_difference_changes_the_digest(document: Document, block: str, key: str, value: object) -> None:
    before = RunConfig.model_validate(document).digest
    document[block][key] = value
    assert RunConfig.model_validate(document).digest != before


SMALL = st.integers(1, 6)


@given(patch=SMALL, regions=st.tuples(SMALL, SMALL), sides=st.tuples(SMALL, SMALL), heads=SMALL)
def test_regions_tile_the_patches_and_patches_tile_the_grid(
    patch: int, regions: tuple[int, int], sides: tuple[int, int], heads: int
) -> None:
    grid = [patch * region * side for region, side in zip(regions, sides, strict=True)]
    config = RunConfig.model_validate(
        _minimal(grid, patch=patch, regions=regions, dim=4 * heads, heads=heads)
    )
    assert config.region_patches == sides
    assert config.tokens * patch**2 == grid[0] * grid[1]
    assert config.model.head_dim * heads == config.model.dim


@given(micro=SMALL, accumulation=SMALL, nodes=SMALL, ranks=SMALL, excess=st.integers(-1, 1))
def test_a_given_train_batch_passes_only_if_it_is_the_product(
    micro: int, accumulation: int, nodes: int, ranks: int, excess: int
) -> None:
    document = _minimal([4, 4], patch=2, regions=(1, 1))
    batch = micro * accumulation * nodes * ranks
    document["training"] |= {"nodes": nodes, "ranks_per_node": ranks}
    document["deepspeed"] |= {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": batch + excess,
    }
    if excess:
        with pytest.raises(ValidationError, match="train_batch_size"):
            RunConfig.model_validate(document)
    else:
        assert RunConfig.model_validate(document).train_batch == batch


@given(micro=SMALL, accumulation=SMALL, nodes=SMALL, excess=st.integers(0, 5), keys=st.integers(1, 7))
def test_missing_batch_fields_are_derived_as_deepspeed_derives_them(
    micro: int, accumulation: int, nodes: int, excess: int, keys: int
) -> None:
    given = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * nodes + excess,
    }
    batch = {name: value for place, (name, value) in enumerate(given.items()) if keys >> place & 1}
    document = _minimal([4, 4], patch=2, regions=(1, 1))
    document["training"]["nodes"] = nodes
    document["deepspeed"] = batch | {"zero_optimization": {"stage": 2}}
    theirs = Theirs.__new__(Theirs)  # without a process group
    vars(theirs).update(dict.fromkeys(given) | batch | {"world_size": nodes})
    try:
        theirs._configure_train_batch_size()
    except AssertionError:
        with pytest.raises(ValidationError, match=r"train_batch_size|train_micro_batch_size_per_gpu"):
            RunConfig.model_validate(document)
        return
    config = RunConfig.model_validate(document)
    assert (config.micro_batch, config.accumulation, config.train_batch) == (
        theirs.train_micro_batch_size_per_gpu, theirs.gradient_accumulation_steps, theirs.train_batch_size,
    )  # fmt: skip
    assert batch_fields(config, nodes)["train_batch_size"] == theirs.train_batch_size


def _minimal(grid: list[int], **model: object) -> Document:
    return {
        "name": "minimal",
        "data": {
            "store": "s",
            "grid": grid,
            "train_years": [2001],
            "validation_years": [2002],
            "test_years": [2003],
        },
        "model": model,
        "optimizer": {"base_lr": 1e-3},
        "training": {"run_dir": "r", "epochs": 1, "nodes": 1, "ranks_per_node": 1},
        "deepspeed": {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}},
    }


def test_a_tendency_needs_every_target_among_the_inputs() -> None:
    changes = ["model.prediction=tendency", 'data.variables=["u", "v", "elevation", "pm25"]']
    with pytest.raises(ValueError, match=r'model\.prediction = "tendency".*a tendency starts from pm10, so2'):
        load_config("ds_configs/demo_cpu.json", changes)


def test_an_older_run_may_name_a_removed_setting_as_off(document: Document) -> None:
    now = RunConfig.model_validate(document)
    document["model"]["sector_embedding"] = False
    assert RunConfig.model_validate(document) == now
    document["model"]["sector_embedding"] = True
    with pytest.raises(ValidationError, match="sector_embedding"):
        RunConfig.model_validate(document)
