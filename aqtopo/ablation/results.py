"""Scores of all variants, and differences with their confidence intervals.

A difference is between trainings of the same seed on the same days, in per cent of the baseline's RMSE:
negative is better. It is shown only if the intervals over days and over seeds exclude 0 on the same side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from aqtopo.ablation.bootstrap import Floats, Interval, draw_days, over_days, over_seeds, resampled_rmse
from aqtopo.ablation.factors import Variant, format_level
from aqtopo.ablation.plan import Ablation, Trial
from aqtopo.ablation.results_file import OVERALL, VAL_LOSS
from aqtopo.evaluation.points import MODEL, WHOLE
from aqtopo.evaluation.results import read_table
from aqtopo.inference.load import load_run
from aqtopo.model.attention import ALPHA

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Contrast:
    """Pairs of variants (treated, baseline) that differ in one setting."""

    label: str
    pairs: tuple[tuple[Variant, Variant], ...]


def contrasts(ablation: Ablation) -> list[Contrast]:
    """Return the main effects over all levels of the other factors, and each variant against the baseline."""
    return [*_main_effects(ablation), *_against_baseline(ablation)]


def _main_effects(ablation: Ablation) -> Iterator[Contrast]:
    for factor in ablation.factors:
        for level in factor.levels[:-1]:
            pairs = tuple(
                (variant.with_level(factor, level), variant)
                for variant in ablation.variants
                if variant.level(factor) == factor.baseline and not variant.also
            )
            label = f"{factor.name}={format_level(level)} (not {format_level(factor.baseline)})"
            yield Contrast(label, pairs)


def _against_baseline(ablation: Ablation) -> Iterator[Contrast]:
    *others, baseline = ablation.variants
    for variant in others:
        if variant.also or len(ablation.factors) > 1:  # with one factor, this is its main effect
            yield Contrast(f"{variant.label} (not baseline)", ((variant, baseline),))


def collect_scores(ablation: Ablation) -> xr.Dataset:
    """Collect the results of all trainings.

    Returns:
        `squared`, `count` (variant, seed, day, area, pollutant, horizon); `scale` (pollutant), standard
        deviation in the training years; `val_loss`, `alpha` (variant, seed), the learned mean alpha [km-1],
        NaN without an elevation bias.
    """
    by_seed = [
        _concatenate(
            [_training_scores(trial) for trial in ablation.trials if trial.seed == seed],
            xr.Variable("variant", [variant.label for variant in ablation.variants]),
        )
        for seed in ablation.seeds
    ]
    return _concatenate(by_seed, xr.Variable("seed", list(ablation.seeds)))


def _concatenate(parts: list[xr.Dataset], along: xr.Variable) -> xr.Dataset:
    """Concatenate parts of equal shape along a new dimension; shared variables stay."""
    own = ["squared", "count", "val_loss", "alpha"]
    return xr.concat(parts, along, data_vars=own, coords="minimal", compat="override", join="exact")


def _training_scores(trial: Trial) -> xr.Dataset:
    """Return daily errors over the domain and elevation bands, validation loss and alpha of one training."""
    by_day = read_table(trial.run_dir, "by_day").sel(forecast=MODEL, drop=True)[["squared", "count"]]
    by_day = by_day.isel(area=by_day["area_kind"].values != "region").drop_vars(
        ["area_kind", "units"], errors="ignore"
    )
    run = load_run(trial.run_dir)
    alphas = [values.mean().item() for name, values in run.model.state_dict().items() if name.endswith(ALPHA)]
    return by_day.assign(
        scale=("pollutant", run.normalization.stds(trial.config.data.targets).ravel().astype(np.float64)),
        val_loss=np.nan if run.tag is None or run.tag.val_loss is None else run.tag.val_loss,
        alpha=np.mean(alphas) if alphas else np.nan,
    )


def compare_variants(ablation: Ablation, scores: xr.Dataset, block_days: int, draws: int) -> xr.Dataset:
    """Compute the scores and the differences of all contrasts.

    Args:
        ablation: the ablation.
        scores: from `collect_scores`.
        block_days: days per block, more than the correlation time of weather and horizons.
        draws: number of resamplings.

    Returns:
        `rmse` (variant, seed, pollutant, horizon) in the pollutants' units, `overall` (variant, seed) in
        standard deviations, `val_loss`, `alpha` (variant, seed); `change`, `days_low`, `days_high`,
        `seeds_low`, `seeds_high` [%] and `shown` (contrast, score); `score` is `all`, `all AREA`,
        `val_loss` or `POLLUTANT HORIZON`.

    Raises:
        ValueError: there are too few test days for the block length.
    """
    sums = _by_score(scores)
    exact = (sums["squared"].sum("day") / sums["count"].sum("day")) ** 0.5
    drawn = _drawn(sums, draw_days(sums.sizes["day"], block_days, draws, BOOTSTRAP_SEED))
    val_loss = scores["val_loss"].expand_dims(score=[VAL_LOSS])
    compared = contrasts(ablation)
    changes = [
        xr.concat([_change(each, exact, drawn), _change(each, val_loss, None)], dim="score")
        for each in compared
    ]
    whole = scores[["squared", "count"]].sel(area=WHOLE, drop=True).sum("day")
    return xr.concat(changes, dim=xr.Variable("contrast", [each.label for each in compared])).assign(
        rmse=(whole["squared"] / whole["count"]) ** 0.5,
        overall=exact.sel(score=OVERALL, drop=True),
        val_loss=scores["val_loss"],
        alpha=scores["alpha"],
    )


def _by_score(scores: xr.Dataset) -> xr.Dataset:
    """Return `squared`, `count` (variant, seed, day, score) of each pair, and of all pairs by area."""
    whole = scores[["squared", "count"]].sel(area=WHOLE, drop=True).stack(pair=("pollutant", "horizon"))
    names = [f"{pollutant} {horizon} h" for pollutant, horizon in whole["pair"].values]
    pairs = whole.drop_vars(["pair", "pollutant", "horizon"]).rename(pair="score").assign_coords(score=names)
    together = xr.Dataset(
        {
            "squared": (scores["squared"] / scores["scale"] ** 2).sum(["pollutant", "horizon"]),
            "count": scores["count"].sum(["pollutant", "horizon"]),
        }
    ).rename(area="score")
    areas = [OVERALL if area == WHOLE else f"{OVERALL} {area}" for area in together["score"].values]
    both = xr.concat([together.assign_coords(score=areas), pairs], dim="score")
    return both.transpose("variant", "seed", "day", "score")


def _drawn(sums: xr.Dataset, weights: Floats) -> xr.DataArray:
    """Return every score of each draw (variant, seed, draw, score)."""
    variants, seeds = sums.sizes["variant"], sums.sizes["seed"]
    squared, count = sums["squared"].values, sums["count"].values.astype(np.float64)
    values = [
        [resampled_rmse(squared[v, s], count[v, s], weights) for s in range(seeds)] for v in range(variants)
    ]
    coords = {name: sums[name] for name in ("variant", "seed", "score")}
    return xr.DataArray(np.array(values), dims=("variant", "seed", "draw", "score"), coords=coords)


def _change(contrast: Contrast, exact: xr.DataArray, drawn: xr.DataArray | None) -> xr.Dataset:
    """Return one contrast's change of each score [%] with its intervals; `drawn` is None without days."""
    by_seed = _percent(contrast, exact).transpose("seed", "score")
    seeds = over_seeds(by_seed.values)
    if drawn is None:
        unknown = np.full(by_seed.sizes["score"], np.nan)
        days, shown = Interval(unknown, unknown), seeds.excludes_zero()
    else:
        days = over_days(_percent(contrast, drawn).mean("seed").transpose("draw", "score").values)
        same_side = np.sign(days.low) == np.sign(seeds.low)
        shown = days.excludes_zero() & seeds.excludes_zero() & same_side
    bounds = {"days_low": days.low, "days_high": days.high, "seeds_low": seeds.low, "seeds_high": seeds.high}
    return xr.Dataset(
        {
            "change": ("score", by_seed.mean("seed").values),
            **{name: ("score", values) for name, values in bounds.items()},
            "shown": ("score", shown),
        },
        coords={"score": by_seed["score"].values},
    )


def _percent(contrast: Contrast, scores: xr.DataArray) -> xr.DataArray:
    """Return the relative difference of the mean scores of treated and baseline variants [%]."""
    treated, baseline = (
        scores.sel(variant=[pair[side].label for pair in contrast.pairs]).mean("variant") for side in (0, 1)
    )
    return 100 * (treated / baseline - 1)
