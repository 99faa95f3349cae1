"""Table of an ablation: change of the squared error of each mechanism, with Holm's correction.

    python scripts/ablation_table.py runs/ablation/ridges runs/ablation/inert ...

The score is the squared error over all pollutants and horizons. Each change is the mean over seeds of the
relative difference from the baseline of the same seed. `p` is that of Student's t over the seeds, multiplied
by Holm's step-down factors over all rows of a table (Holm 1979, Scand. J. Stat. 6, 65). The interval over
days is that of `results.json`, squared. `attention` is the increase of the validation loss if the attention
of every block returns the mean over all tokens, the median of the seeds: near 0, attention is not in use.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from aqtopo.ablation.results_file import OVERALL, RUNS, Results, VariantResult, read_results
from aqtopo.data.loader import EvaluationLoader
from aqtopo.inference.load import load_run
from scripts.attention_importance import loss, without_attention

Floats = NDArray[np.float64]


def squared_changes(variant: VariantResult, baseline: VariantResult) -> Floats:
    """Return the change of the squared error of each seed [%]."""
    treated, reference = (np.array(one.overall_rmse, np.float64) for one in (variant, baseline))
    return 100 * ((treated / reference) ** 2 - 1)


def holm(values: Floats) -> Floats:
    """Return p values with Holm's correction."""
    order = np.argsort(values)
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def attention_use(run_dir: Path) -> float:
    """Return the increase of the validation loss without attention [%]."""
    run = load_run(run_dir)
    batches = list(EvaluationLoader(run.store, run.config, "validation", rank=0, world=1, batch=32))
    without = without_attention(run.model, batches, range(len(run.model.blocks)))
    return 100 * (without / loss(run.model, batches) - 1)


def of_regression(run_dirs: Sequence[Path], name: str) -> str:
    """Return the squared error of runs relative to that of a regression: mean and range."""
    ratios = []
    for run_dir in run_dirs:
        scores = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
        squared_error = scores["summary"]["squared_error"]
        ratios.append(squared_error["model"] / squared_error[name])
    return f"{np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of {name}"


def squared(percent: float | None) -> float:
    """Return the change of a square [%] from that of its root."""
    return np.nan if percent is None else 100 * ((1 + percent / 100) ** 2 - 1)


def days_and_bands(results: Results, variant: VariantResult) -> tuple[str, str]:
    """Return the interval over days, and the changes by elevation band, of the squared error."""
    rows = {c.score: c for c in results.changes if c.contrast.startswith(f"{variant.variant} (not ")}
    days = f"{squared(rows[OVERALL].days_low):+.1f} to {squared(rows[OVERALL].days_high):+.1f}"
    bands = (score for score in rows if score.startswith(f"{OVERALL} "))
    changes = (f"{squared(rows[score].change):+.1f}" for score in bands)
    return days, " ".join(changes)


def main() -> None:
    """Print a table for each ablation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ablations", nargs="+", type=Path, metavar="ABLATION")
    for folder in parser.parse_args().ablations:
        results = read_results(folder)
        *variants, baseline = results.variants
        seeds = [f"seed{seed}" for seed in results.seeds]
        runs = [folder / RUNS / baseline.folder / seed for seed in seeds]
        ratios = ", ".join(of_regression(runs, name) for name in ("linear", "linear_same"))
        table = Table(title=f"{folder}: {len(seeds)} seeds; baseline's squared error {ratios}")
        for name in ("variant", "change %", "95% seeds", "95% days", "p (Holm)", "bands %", "attention %"):
            table.add_column(name)
        changes = [squared_changes(variant, baseline) for variant in variants]
        tests = [stats.ttest_1samp(change, 0.0) for change in changes]
        corrected = holm(np.array([test.pvalue for test in tests]))
        for variant, change, test, p in zip(variants, changes, tests, corrected, strict=True):
            low, high = test.confidence_interval(0.95)
            days, bands = days_and_bands(results, variant)
            used = median(attention_use(folder / RUNS / variant.folder / seed) for seed in seeds)
            seeds_interval = f"{low:+.1f} to {high:+.1f}"
            cells = (f"{change.mean():+.1f}", seeds_interval, days, f"{p:.3f}", bands, f"{used:+.1f}")
            table.add_row(variant.variant, *cells)
        used = median(attention_use(folder / RUNS / baseline.folder / seed) for seed in seeds)
        table.add_row(f"baseline: {baseline.variant}", *[""] * 5, f"{used:+.1f}")
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
