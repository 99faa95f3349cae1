"""Compare training in bfloat16 with training in float32: the evidence of docs/lumi.md.

    python -m scripts.precision [--jobs 2] [EXPERIMENT ...]

It runs `aqtopo ablate` with `deepspeed.bf16.enabled` as the factor, then prints the validation losses and
alpha of each seed. alpha is that of the float32 master weights. After a kill, the same command resumes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from aqtopo.ablation.results_file import RUNS, read_results
from aqtopo.report.history import History, read_history
from aqtopo.run_directory.log_file import METRICS_FILE
from scripts.ablation import CONFIG, DOMAIN, YEARS, run
from scripts.ablation_table import days_and_bands, squared_changes

STORE = "data/ablation_ridges.zarr"
FIRST_SEED = 20  # no trial of the ablation used this seed or a higher one
PUBLISHED = ("model.wind_order=true", "model.elevation_bias=published")
RIDGES = (f"data.store={STORE}", "training.validate_every=241", *PUBLISHED)

EXPERIMENTS = {
    "ablation": (CONFIG, RIDGES),
    # The transformer alone makes the forecast, as in lumi_400gpu.json.
    "transformer": (CONFIG, (*RIDGES, "model.local_path=false")),
    "demo": ("ds_configs/demo_cpu.json", ()),  # on the store of `make demo`
}


def compare(name: str, jobs: str) -> None:
    """Train the missing runs of an experiment and print its tables."""
    config, settings = EXPERIMENTS[name]
    folder = Path("runs/precision") / name
    grid = (
        "--grid",
        "deepspeed.bf16.enabled=true,false",
        "--seeds",
        "3",
        "--jobs",
        jobs,
        "--out",
        str(folder),
    )
    changes = (f"training.seed={FIRST_SEED}", *settings)
    run("ablate", config, *grid, *(part for change in changes for part in ("--set", change)))

    results = read_results(folder)
    bf16, fp32 = results.variants
    table = Table(title=f"{name}: bfloat16 against float32")
    for column in ("seed", "step", "val_loss fp32", "bf16", "change %", "alpha fp32", "bf16"):
        table.add_column(column)
    for seed in results.seeds:
        pair = [
            read_history(folder / RUNS / one.folder / f"seed{seed}" / METRICS_FILE) for one in (fp32, bf16)
        ]
        for row in _rows(pair):
            table.add_row(str(seed), *row)
    losses = 100 * (np.array(bf16.val_loss, float) / np.array(fp32.val_loss, float) - 1)
    console = Console(width=120)
    console.print(table)
    console.print(f"best val_loss: {_interval(losses)}")
    console.print(f"squared error of the test year: {_interval(squared_changes(bf16, fp32))}")
    console.print(f"its interval over days [%]: {days_and_bands(results, bf16)[0]}")


def _rows(pair: Sequence[History]) -> list[tuple[str, ...]]:
    """Return a row for each validation of a pair of runs: float32, bfloat16."""
    rows = []
    for exact, rounded in zip(*(history.validations for history in pair), strict=True):
        change = f"{100 * (rounded.val_loss / exact.val_loss - 1):+.2f}"
        alphas = [float(np.mean(list(line.alpha.values()))) for line in (exact, rounded)]
        losses = f"{exact.val_loss:.5f}", f"{rounded.val_loss:.5f}", change
        rows.append((str(exact.step), *losses, *(f"{alpha:.6f}" for alpha in alphas)))
    return rows


def _interval(changes: np.ndarray) -> str:
    """Return the mean over seeds and its 95% interval, Student's t."""
    low, high = stats.t.interval(0.95, len(changes) - 1, changes.mean(), stats.sem(changes))
    return f"{changes.mean():+.2f}% ({low:+.2f} to {high:+.2f} over seeds)"


def main() -> None:
    """Simulate a missing store and compare the experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), metavar="EXPERIMENT")
    parser.add_argument("--jobs", default="2", help="concurrent trainings")
    options = parser.parse_args()
    if not Path(STORE).exists():
        run("synth", STORE, "--world", "ridges", *DOMAIN, *YEARS)
    for name in options.experiments:
        compare(name, options.jobs)


if __name__ == "__main__":
    main()
