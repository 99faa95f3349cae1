import re

import pytest

from aqtopo.ablation.factors import parse_grid, variants


def test_names_alone_take_their_usual_levels_with_the_baseline_last() -> None:
    wind, bias = parse_grid(["wind_order,elevation_bias"])
    assert (wind.path, wind.levels) == ("model.wind_order", (True, False))
    assert (bias.path, bias.levels) == ("model.elevation_bias", ("published", False))
    assert parse_grid(["lead_time"])[0].levels == ("encoder", "decoder")


def test_levels_may_be_given_also_lists_and_settings_of_other_sections() -> None:
    grid = parse_grid(
        ["regions=[4,4],[1,1]", "elevation_bias=published,uphill,false", "optimizer.eps=1e-8,1e-7"]
    )
    assert [factor.levels for factor in grid] == [
        ([4, 4], [1, 1]),
        ("published", "uphill", False),
        (1e-8, 1e-7),
    ]


def test_every_combination_is_a_variant_and_the_last_is_the_baseline() -> None:
    found = variants(
        parse_grid(["wind_order", "elevation_bias=published,uphill,false", "regions=[2,2],[1,1]"])
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


def test_a_variant_that_differs_in_one_factor_is_one_of_them() -> None:
    factors = parse_grid(["wind_order,elevation_bias"])
    found = variants(factors)
    assert found[0].with_level(factors[0], False) == found[2]


def test_a_variant_beside_the_grid_differs_from_the_baseline_in_what_it_says() -> None:
    beside, *grid = variants(
        parse_grid(["wind_order,elevation_bias"]), ["elevation_bias=uphill bias_blocks=[0,1]"]
    )
    assert beside.label == "elevation_bias=uphill bias_blocks=[0,1]"
    assert beside.slug == "also_elevation_bias-uphill_bias_blocks-0-1"
    assert beside.overrides[:2] == grid[-1].overrides
    assert beside.overrides[2:] == ['model.elevation_bias="uphill"', "model.bias_blocks=[0, 1]"]
    with pytest.raises(ValueError, match="must be settings with their values"):
        variants(parse_grid(["wind_order"]), ["uphill"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "is empty"),
        (["wind_ordr"], "the model has no such setting"),
        (["data.time_stride_hours=1,2"], "must lie in model or optimizer"),
        (["training.epochs=1,2"], "must lie in model or optimizer"),
        (["regions"], "give its levels"),
        (["sectors=8"], "at least two levels"),
        (["sectors=8,8"], "each once"),
        (["wind_order", "wind_order=true,false"], "twice"),
    ],
)
def test_what_cannot_be_varied_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grid(grid)


def test_an_item_of_a_list_makes_a_folder_without_brackets() -> None:
    grid = parse_grid(["optimizer.betas[1]=0.95,0.999"])
    slugs = [variant.slug for variant in variants(grid, ["optimizer.groups[0].lr_multiplier=1.0"])]
    assert slugs == ["also_lr_multiplier-1.0", "betas-1-0.95", "betas-1-0.999"]
    assert all(re.fullmatch(r"\w[\w.-]*", slug) for slug in slugs)
