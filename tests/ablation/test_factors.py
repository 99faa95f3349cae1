import re

import pytest

from aqtopo.ablation.factors import parse_factors, variants


def test_names_have_default_levels_with_the_baseline_last() -> None:
    wind, bias = parse_factors(["wind_order,elevation_bias"])
    assert (wind.path, wind.levels) == ("model.wind_order", (True, False))
    assert (bias.path, bias.levels) == ("model.elevation_bias", ("published", False))
    assert parse_factors(["lead_time"])[0].levels == ("encoder", "decoder")


def test_levels_can_be_lists_and_optimizer_settings() -> None:
    grid = parse_factors(
        ["regions=[4,4],[1,1]", "elevation_bias=published,uphill,false", "optimizer.eps=1e-8,1e-7"]
    )
    assert [factor.levels for factor in grid] == [
        ([4, 4], [1, 1]),
        ("published", "uphill", False),
        (1e-8, 1e-7),
    ]


def test_precision_is_a_factor_with_a_readable_name() -> None:
    (precision,) = parse_factors(["deepspeed.bf16.enabled"])
    assert (precision.path, precision.levels) == ("deepspeed.bf16.enabled", (True, False))
    bf16, fp32 = variants((precision,))
    assert (bf16.label, fp32.slug) == ("bf16=true", "bf16-false")
    with pytest.raises(ValueError, match=r"deepspeed\.gradient_clipping cannot be varied"):
        parse_factors(["deepspeed.gradient_clipping=0.5,1.0"])


def test_every_combination_is_a_variant_and_the_last_is_the_baseline() -> None:
    found = variants(
        parse_factors(["wind_order", "elevation_bias=published,uphill,false", "regions=[2,2],[1,1]"])
    )
    assert len(found) == 12
    assert len({variant.slug for variant in found}) == 12
    assert found[0].label == "wind_order=true elevation_bias=published regions=[2,2]"
    assert found[0].slug == "wind_order-true_elevation_bias-published_regions-2-2"
    assert found[0].overrides == [
        "model.wind_order=true",
        'model.elevation_bias="published"',
        "model.regions=[2, 2]",
    ]
    assert found[-1].levels == (False, False, [1, 1])


def test_with_level_returns_another_variant_of_the_grid() -> None:
    factors = parse_factors(["wind_order,elevation_bias"])
    found = variants(factors)
    assert found[0].with_level(factors[0], False) == found[2]


def test_an_extra_variant_differs_from_the_baseline_in_its_settings() -> None:
    extra, *grid = variants(
        parse_factors(["wind_order,elevation_bias"]), ["elevation_bias=uphill bias_blocks=[0,1]"]
    )
    assert extra.label == "elevation_bias=uphill bias_blocks=[0,1]"
    assert extra.slug == "also_elevation_bias-uphill_bias_blocks-0-1"
    assert extra.overrides[:2] == grid[-1].overrides
    assert extra.overrides[2:] == ['model.elevation_bias="uphill"', "model.bias_blocks=[0, 1]"]
    with pytest.raises(ValueError, match=r"is invalid\. Example"):
        variants(parse_factors(["wind_order"]), ["uphill"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "is empty"),
        (["wind_ordr"], "the model has no such setting"),
        (["data.time_stride_hours=1,2"], "must be in model or optimizer, or one of data.forcings"),
        (["data.history_hours"], "needs levels"),
        (["training.epochs=1,2"], "must be in model or optimizer"),
        (["regions"], "needs levels"),
        (["sectors=8"], "at least two levels"),
        (["sectors=8,8"], "each once"),
        (["wind_order", "wind_order=true,false"], "twice"),
    ],
)
def test_invalid_factors_are_refused(grid: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_factors(grid)


def test_slugs_of_list_items_have_no_brackets() -> None:
    grid = parse_factors(["optimizer.betas[1]=0.95,0.999"])
    slugs = [variant.slug for variant in variants(grid, ["optimizer.groups[0].lr_multiplier=1.0"])]
    assert slugs == ["also_lr_multiplier-1.0", "betas-1-0.95", "betas-1-0.999"]
    assert all(re.fullmatch(r"\w[\w.-]*", slug) for slug in slugs)
