"""Run the ablation of docs/ablation.md: simulate each scenario and train every variant in it.

    python scripts/ablation.py [--jobs 2] [SCENARIO ...]

After a kill, the same command resumes: finished stores and trainings are kept.
Results: runs/ablation/SCENARIO.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FACTORS = ("wind_order=true,false", "elevation_bias=published,false")
UPHILL = "elevation_bias=uphill"
# One head stays unbiased: a token needs the whole map to infer the time of day.
LOCAL = tuple(f"local_bias={form} local_heads=3 bias_blocks=[0,1,2]" for form in ("near", "origin"))
ALSO = {
    "ridges": (UPHILL, *LOCAL),
    "flat": LOCAL,  # without elevation, both directions of the elevation bias are equal
    "inert": (UPHILL, *LOCAL),
}
SCENARIOS = ("ridges", "flat")
CONFIG = "ds_configs/ablation_cpu.json"
DOMAIN = ("--grid", "16x32", "--lat", "22", "38", "--lon", "92", "124")
YEARS = ("--years", "2014", "2015", "2016", "2017", "2018", "--train-years", "2014", "2015", "2016")
SEEDS = "3"


def run(*arguments: str) -> None:
    """Run one aqtopo command.

    Raises:
        SystemExit: the command failed.
    """
    code = subprocess.run([sys.executable, "-m", "aqtopo", *arguments], check=False).returncode
    if code:
        raise SystemExit(f"ablation: `aqtopo {' '.join(arguments)}` failed with exit code {code}")


def main() -> None:
    """Simulate missing stores, train unfinished variants, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--jobs", default="2", help="concurrent trainings")
    options = parser.parse_args()
    start = time.monotonic()
    for scenario in options.scenarios:
        store = f"data/ablation_{scenario}.zarr"
        if not Path(store).exists():
            run("synth", store, "--world", scenario, *DOMAIN, *YEARS)
        paths = ("--set", f"data.store={store}", "--out", f"runs/ablation/{scenario}")
        grid = [part for factor in FACTORS for part in ("--grid", factor)]
        extra = [part for variant in ALSO[scenario] for part in ("--also", variant)]
        run("ablate", CONFIG, *grid, *extra, "--seeds", SEEDS, "--jobs", options.jobs, *paths)
    print(f"ablation of {', '.join(options.scenarios)}: {(time.monotonic() - start) / 60:.1f} minutes")  # noqa: T201


if __name__ == "__main__":
    main()
