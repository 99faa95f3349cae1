"""What the trainings say about the factors: scores of every variant, and differences with their intervals.

A difference is taken between trainings of the same seed, on the same days, and is given in per cent of the
baseline's RMSE: negative is better. It counts as shown only if both intervals, over days and over seeds, lie
on the same side of zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from aqtopo.ablation.bootstrap import Floats, Interval, draw_days, over_days, over_seeds, resampled_rmse
from aqtopo.ablation.factors import Factor, Variant, spelled
from aqtopo.ablation.plan import Ablation, Trial
from aqtopo.ablation.results_file import OVERALL, VAL_LOSS
from aqtopo.evaluation.points import MODEL, WHOLE
from aqtopo.evaluation.results import read_table
from aqtopo.inference.load import load_run
from aqtopo.model.attention import ALPHA

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Contrast:
    """What is compared with what: pairs of variants that differ in one thing.

    Attributes:
        label: for people.
        pairs: (treated, baseline).
    """

    label: str
    pairs: tuple[tuple[Variant, Variant], ...]


def contrasts(ablation: Ablation) -> list[Contrast]:
    """Main effects first, over all levels of the other factors; then every variant against the last one."""
    return [*_main_effects(ablation), *_against_baseline(ablation)]


def _main_effects(ablation: Ablation) -> Iterator[Contrast]:
    for factor in ablation.factors:
        for level in factor.levels[:-1]:
            pairs = tuple(
                (variant.with_level(factor, level), variant)
                for variant in ablation.variants
                if variant.level(factor) == factor.baseline and not variant.also
            )
            yield Contrast(_named(factor, level), pairs)


def _named(factor: Factor, level: object) -> str:
    return f"{factor.name}={spelled(level)} (not {spelled(factor.baseline)})"


def _against_baseline(ablation: Ablation) -> Iterator[Contrast]:
    *others, baseline = ablation.variants
    for variant in others:
        if variant.also or len(ablation.factors) > 1:  # with one factor, its main effect says it
            yield Contrast(f"{variant.label} (not baseline)", ((variant, baseline),))


def collect(ablation: Ablation) -> xr.Dataset:
    """What every training left, in one dataset.

    Returns:
        `squared`, `count` (variant, seed, day, area, pollutant, horizon); `scale` (pollutant), the deviation
        in the training years; `val_loss`, `alpha` (variant, seed), the latter the mean barrier strength
        [km-1] that was learnt, NaN where there is none.
    """
    by_seed = [
        _joined(
            [_left_by(trial) for trial in ablation.trials if trial.seed == seed],
            xr.Variable("variant", [variant.label for variant in ablation.variants]),
        )
        for seed in ablation.seeds
    ]
    return _joined(by_seed, xr.Variable("seed", list(ablation.seeds)))


def _joined(parts: list[xr.Dataset], along: xr.Variable) -> xr.Dataset:
    """Parts of equal shape along a new dimension; what they have in common stays as it is."""
    own = ["squared", "count", "val_loss", "alpha"]
    return xr.concat(parts, along, data_vars=own, coords="minimal", compat="override", join="exact")


def _left_by(trial: Trial) -> xr.Dataset:
    """One training's daily errors over the domain and its bands of elevation, validation loss and alpha."""
    by_day = read_table(trial.run_dir, "by_day").sel(forecast=MODEL, drop=True)[["squared", "count"]]
    by_day = by_day.isel(area=by_day["area_kind"].values != "region").drop_vars(
        ["area_kind", "units"], errors="ignore"
    )
    run = load_run(trial.run_dir)
    alphas = [values.mean().item() for name, values in run.model.state_dict().items() if name.endswith(ALPHA)]
    return by_day.assign(
        scale=("pollutant", run.normalization.stds(trial.config.data.targets).ravel().astype(np.float64)),
        val_loss=np.nan if run.tag.val_loss is None else run.tag.val_loss,
        alpha=np.mean(alphas) if alphas else np.nan,
    )


def compare(ablation: Ablation, scores: xr.Dataset, block_days: int, draws: int) -> xr.Dataset:
    """Scores, and the differences that the contrasts ask for.

    Args:
        ablation: what was varied.
        scores: from `collect`.
        block_days: days of a block; longer than weather and horizons hang together.
        draws: resamplings.

    Returns:
        `rmse` (variant, seed, pollutant, horizon) in the pollutants' units, `overall` (variant, seed) in
        deviations, `val_loss` and `alpha` (variant, seed); `change`, `days_low`, `days_high`, `seeds_low`,
        `seeds_high` [%] and `shown` (contrast, score); `score` is `all`, `all AREA`, `val_loss` or
        `POLLUTANT HORIZON`.

    Raises:
        ValueError: there are too few test days for blocks of that length.
    """
    sums = _by_score(scores)
    exact = (sums["squared"].sum("day") / sums["count"].sum("day")) ** 0.5
    drawn = _drawn(sums, draw_days(sums.sizes["day"], block_days, draws, BOOTSTRAP_SEED))
    val_loss = scores["val_loss"].expand_dims(score=[VAL_LOSS])
    asked = contrasts(ablation)
    changes = [
        xr.concat([_change(each, exact, drawn), _change(each, val_loss, None)], dim="score") for each in asked
    ]
    whole = scores[["squared", "count"]].sel(area=WHOLE, drop=True).sum("day")
    return xr.concat(changes, dim=xr.Variable("contrast", [each.label for each in asked])).assign(
        rmse=(whole["squared"] / whole["count"]) ** 0.5,
        overall=exact.sel(score=OVERALL, drop=True),
        val_loss=scores["val_loss"],
        alpha=scores["alpha"],
    )


def _by_score(scores: xr.Dataset) -> xr.Dataset:
    """`squared` and `count` (variant, seed, day, score) of all pairs together by area, and of each pair."""
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
    """(variant, seed, draw, score) every score of the days that each draw takes."""
    variants, seeds = sums.sizes["variant"], sums.sizes["seed"]
    squared, count = sums["squared"].values, sums["count"].values.astype(np.float64)
    values = [
        [resampled_rmse(squared[v, s], count[v, s], weights) for s in range(seeds)] for v in range(variants)
    ]
    coords = {name: sums[name] for name in ("variant", "seed", "score")}
    return xr.DataArray(np.array(values), dims=("variant", "seed", "draw", "score"), coords=coords)


def _change(contrast: Contrast, exact: xr.DataArray, drawn: xr.DataArray | None) -> xr.Dataset:
    """One contrast's change of each score [%] with its intervals.

    Args:
        contrast: what is compared.
        exact: (variant, seed, score) scores.
        drawn: (variant, seed, draw, score) the same of resampled days; None where there are no days.
    """
    by_seed = _per_cent(contrast, exact).transpose("seed", "score")
    seeds = over_seeds(by_seed.values)
    if drawn is None:
        unknown = np.full(by_seed.sizes["score"], np.nan)
        days, shown = Interval(unknown, unknown), seeds.excludes_zero()
    else:
        days = over_days(_per_cent(contrast, drawn).mean("seed").transpose("draw", "score").values)
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


def _per_cent(contrast: Contrast, scores: xr.DataArray) -> xr.DataArray:
    """(..., without variant) how much higher the treated variants' mean score is than the baselines' [%]."""
    treated, baseline = (
        scores.sel(variant=[pair[side].label for pair in contrast.pairs]).mean("variant") for side in (0, 1)
    )
    return 100 * (treated / baseline - 1)
