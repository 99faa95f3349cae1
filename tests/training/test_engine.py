import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import ModelConfig, RunConfig, load_config
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.training.engine import PREFERENCES, batch_fields, group_parameters, preferences_in_units
from aqtopo.training.resume import model_groups

REFERENCE = load_config("ds_configs/resume_reference.json")


def test_configured_world_keeps_the_configured_accumulation() -> None:
    assert batch_fields(REFERENCE, 400) == {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 1600,
    }


def test_lost_node_raises_the_accumulation_to_hold_the_same_step() -> None:
    assert batch_fields(REFERENCE, 392)["gradient_accumulation_steps"] == 3
    assert batch_fields(REFERENCE, 1)["gradient_accumulation_steps"] == 800


@given(world=st.integers(1, 2000))
def test_a_step_always_has_room_for_its_samples_and_wastes_less_than_a_micro_step(world: int) -> None:
    room = batch_fields(REFERENCE, world)["train_batch_size"]
    assert 0 <= room - REFERENCE.train_batch < world * REFERENCE.micro_batch


NAMES = [
    "token_embeds.proj_weights",
    "token_embeds.proj_biases",
    "var_embed",
    "var_query",
    "pos_embed",
    "var_agg.in_proj_weight",
    "var_agg.in_proj_bias",
    "var_agg.out_proj.weight",
    "var_agg.out_proj.bias",
    "lead_time_embed.weight",
    "lead_time_embed.bias",
    "blocks.0.attn.alpha",
    "blocks.11.mlp.fc1.weight",
    "norm.weight",
    "norm.bias",
    "head.0.weight",
    "head.4.bias",
]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("ds_configs/resume_reference.json")


def test_every_parameter_is_in_one_group_whatever_the_order(config: RunConfig) -> None:
    groups = group_parameters(NAMES, config)
    assert list(groups) == ["vit_blocks", "wind_embedding", "head", "others"]
    assert groups["vit_blocks"] == ["blocks.0.attn.alpha", "blocks.11.mlp.fc1.weight"]
    assert groups["wind_embedding"] == ["token_embeds.proj_weights", "token_embeds.proj_biases"]
    assert groups["head"] == ["head.0.weight", "head.4.bias"]
    assert len(groups["others"]) == 11
    backwards = group_parameters(reversed(NAMES), config)
    assert {name: sorted(members) for name, members in groups.items()} == {
        name: sorted(members) for name, members in backwards.items()
    }


def test_parameter_without_a_group_is_named(config: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"parameter novel\.weight is in no group"):
        group_parameters([*NAMES, "novel.weight"], config)


def test_parameter_in_two_groups_is_named_with_both() -> None:
    config = load_config(
        "ds_configs/resume_reference.json", ['optimizer.groups.2.parameters=["head.*", "blocks.0.*"]']
    )
    with pytest.raises(ValueError, match=r"blocks.0.attn.alpha is in 2 groups \(vit_blocks, head\)"):
        group_parameters(NAMES, config)


def test_pattern_that_matches_nothing_is_named(config: RunConfig) -> None:
    names = [name for name in NAMES if not name.startswith("norm.")]
    with pytest.raises(ValueError, match=r"'norm.*' \(others\) matches no parameter"):
        group_parameters(names, config)


def test_wholly_frozen_group_is_named() -> None:
    config = load_config("ds_configs/resume_reference.json")
    with torch.device("meta"):
        model = build_model(config, Terrain.flat(config.data.grid))
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'head\.\*' \(head\) matches no parameter"):
        model_groups(config, model)


def test_preferences_are_told_in_hours_and_patches_by_block() -> None:
    config = ModelConfig(patch=2, dim=16, depth=1, heads=2, regions=(1, 1), local_bias="origin")
    model = AirQualityViT(config, Terrain.flat((8, 8)), variables=3, targets=1)
    learnt = {
        name: weight.tolist()
        for name, weight in model.named_parameters()
        if name.endswith(tuple(PREFERENCES))
    }
    assert preferences_in_units(learnt) == {
        "blocks.0 travel [h]": [0.0, 24.0],
        "blocks.0 width [patches]": pytest.approx([0.75, 1.5]),
    }
