"""Comparison of synthetic errors with known differences."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.ablation.factors import parse_factors
from aqtopo.ablation.plan import Ablation, claim_folder, plan_ablation
from aqtopo.ablation.report import result_tables, write_comparison
from aqtopo.ablation.results import compare_variants, contrasts
from aqtopo.ablation.results_file import NOT_SHOWN, read_results
from aqtopo.data import open_store
from aqtopo.report import write_ablation_report
from tests.conftest import TinyConfig

DAYS, SEEDS = 200, 3
POLLUTANTS, HORIZONS = ["pm25", "o3"], [12, 96]


@pytest.fixture
def ablation(tiny_config: TinyConfig, tmp_path: Path) -> Ablation:
    path = tmp_path / "config.json"
    path.write_text(tiny_config(model={"lead_time": "decoder"}).to_json(), encoding="utf-8")
    return plan_ablation(path, [], parse_factors(["wind_order,elevation_bias"]), SEEDS, tmp_path / "out")


def errors(ablation: Ablation, gain: dict[str, float], noise: float = 0.01) -> xr.Dataset:
    """Return squared errors with common weather, a factor per true level in `gain`, and noise per seed."""
    rng = np.random.default_rng(0)
    shape = (len(ablation.variants), SEEDS, DAYS, 2, 2, 2)
    weather = rng.gamma(2.0, 50.0, (1, 1, DAYS, 1, 2, 2))
    factor = np.ones((len(ablation.variants), SEEDS))
    for v, variant in enumerate(ablation.variants):
        for f in ablation.factors:
            if variant.level(f) is not False:
                factor[v] *= gain.get(f.name, 1.0)
    factor *= 1 + noise * rng.normal(size=factor.shape)
    squared = factor[:, :, None, None, None, None] ** 2 * weather * np.ones(shape)
    return xr.Dataset(
        {
            "squared": (("variant", "seed", "day", "area", "pollutant", "horizon"), squared),
            "count": (("variant", "seed", "day", "area", "pollutant", "horizon"), np.full(shape, 10)),
            "scale": ("pollutant", np.array([15.0, 20.0])),
            "val_loss": (("variant", "seed"), factor**2),
            "alpha": (("variant", "seed"), np.full(factor.shape, np.nan)),
        },
        coords={
            "variant": [variant.label for variant in ablation.variants],
            "seed": list(ablation.seeds),
            "day": np.arange(DAYS),
            "area": ["all", "plains"],
            "pollutant": POLLUTANTS,
            "horizon": HORIZONS,
        },
    )


def test_an_effective_factor_is_shown_and_an_ineffective_one_is_not(ablation: Ablation) -> None:
    result = compare_variants(
        ablation, errors(ablation, {"wind_order": 0.9}, noise=0.002), block_days=5, draws=300
    )
    wind, bias = (result.isel(contrast=place) for place in (0, 1))
    assert str(wind["contrast"].values).startswith("wind_order=true")
    for score in ("all", "all plains", "pm25 12 h", "o3 96 h"):
        assert float(wind["change"].sel(score=score)) == pytest.approx(-10.0, abs=0.5)
    assert float(wind["change"].sel(score="val_loss")) == pytest.approx(-19.0, abs=1.0)
    assert wind["shown"].all()
    assert not bias["shown"].any()
    verdicts = {row[0]: row[-1] for row in result_tables(result)[1].rows if row[1] == "all"}
    assert verdicts["wind_order=true (not false)"] == "better"
    assert verdicts["elevation_bias=published (not false)"] == NOT_SHOWN


def test_an_effect_that_differs_between_seeds_is_not_shown(ablation: Ablation) -> None:
    """All days agree: the interval over days alone excludes 0."""
    result = compare_variants(ablation, errors(ablation, {}, noise=0.05), block_days=5, draws=300)
    wind = result.isel(contrast=0).sel(score="all")
    assert float(wind["days_low"]) * float(wind["days_high"]) > 0
    assert not wind["shown"]


def test_a_harmful_factor_is_shown(ablation: Ablation) -> None:
    made = errors(ablation, {"elevation_bias": 1.2}, noise=0.002)
    result = compare_variants(ablation, made, block_days=5, draws=300)
    rows = {(row[0], row[1]): row for row in result_tables(result)[1].rows}
    assert rows["elevation_bias=published (not false)", "all"][-1] == "worse"


def test_main_effects_pair_variants_that_differ_in_one_factor(ablation: Ablation) -> None:
    wind, bias, *single = contrasts(ablation)
    assert [(a.slug, b.slug) for a, b in wind.pairs] == [
        ("wind_order-true_elevation_bias-published", "wind_order-false_elevation_bias-published"),
        ("wind_order-true_elevation_bias-false", "wind_order-false_elevation_bias-false"),
    ]
    assert len(bias.pairs) == 2
    assert [len(each.pairs) for each in single] == [1, 1, 1]


def test_markdown_tables_have_all_rows_and_columns(ablation: Ablation) -> None:
    result = compare_variants(ablation, errors(ablation, {}), block_days=5, draws=300)
    for table in result_tables(result):
        lines = table.as_markdown().splitlines()[2:]
        assert len(lines) == len(table.rows) + 2
        assert {line.count("|") for line in lines} == {len(table.head) + 1}


def test_written_results_can_be_read_by_the_report(ablation: Ablation) -> None:
    made = errors(ablation, {"wind_order": 0.9}, noise=0.002)
    result = compare_variants(ablation, made, block_days=5, draws=300).assign_attrs(
        alike="initial weights: equal"
    )
    claim_folder(ablation)
    content = read_results(write_comparison(ablation, result).parent)
    assert [one.variant for one in content.variants] == [variant.label for variant in ablation.variants]
    assert [one.folder for one in content.variants] == [variant.slug for variant in ablation.variants]
    assert content.variants[0].alpha == (None,) * SEEDS
    assert (content.simulated, content.source) == (True, open_store(content.store).source)
    assert content.factors == {factor.path: factor.levels for factor in ablation.factors}
    np.testing.assert_array_equal(
        [one.overall_rmse for one in content.variants], result["overall"].transpose("variant", "seed")
    )
    found = [one.change for one in content.changes]
    np.testing.assert_array_equal(found, result["change"].transpose("contrast", "score").values.ravel())
    assert "wind_order=true (not false)" in write_ablation_report(ablation.out).read_text(encoding="utf-8")


def test_trials_differ_only_in_factors_seed_and_directory(ablation: Ablation) -> None:
    trees = [json.loads(trial.config.to_json()) for trial in ablation.trials]
    for tree in trees:
        for section, key in (("model", "wind_order"), ("model", "elevation_bias")):
            tree[section].pop(key)
        tree["training"].pop("seed"), tree["training"].pop("run_dir")
    assert all(tree == trees[0] for tree in trees)
    assert [trial.seed for trial in ablation.trials[:5]] == [0, 0, 0, 0, 1]


def test_only_the_same_ablation_may_add_seeds_to_a_folder(ablation: Ablation, tmp_path: Path) -> None:
    claim_folder(ablation)
    path, grid = tmp_path / "config.json", ["wind_order,elevation_bias"]
    claim_folder(plan_ablation(path, [], parse_factors(grid), SEEDS + 2, ablation.out))
    for overrides, other_grid in ((["model.dim=64"], grid), ([], ["wind_order"])):
        other = plan_ablation(path, overrides, parse_factors(other_grid), SEEDS, ablation.out)
        with pytest.raises(ValueError, match="another configuration or other factors"):
            claim_folder(other)


def test_a_file_as_output_folder_is_refused(ablation: Ablation) -> None:
    ablation.out.write_text("notes", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is a file.*Choose another --out"):
        claim_folder(ablation)
    assert ablation.out.read_text(encoding="utf-8") == "notes"
