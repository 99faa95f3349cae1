"""The ablation of docs/ablation.md: simulate the worlds, train every variant in each, say what is shown.

    python scripts/ablation.py [--jobs 2] [WORLD ...]

Killed, it goes on where it was: worlds and trainings that are done stay. Results lie in runs/ablation/WORLD.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FACTORS = ("wind_order=true,false", "elevation_bias=published,false")
UPHILL = "elevation_bias=uphill"
# A head is left free: only from the whole map can a token tell the time of day.
LOCAL = tuple(f"local_bias={form} local_heads=3 bias_blocks=[0,1,2]" for form in ("near", "origin"))
ALSO = {
    "ridges": (UPHILL, *LOCAL),
    "flat": LOCAL,  # without heights both directions of the elevation bias are the same
    "inert": (UPHILL, *LOCAL),
}
WORLDS = ("ridges", "flat")
CONFIG = "ds_configs/ablation_cpu.json"
DOMAIN = ("--grid", "16x32", "--lat", "22", "38", "--lon", "92", "124")
YEARS = ("--years", "2014", "2015", "2016", "2017", "2018", "--train-years", "2014", "2015", "2016")
SEEDS = "3"


def run(*arguments: str) -> None:
    """Run one command of aqtopo.

    Raises:
        SystemExit: it failed.
    """
    code = subprocess.run([sys.executable, "-m", "aqtopo", *arguments], check=False).returncode
    if code:
        raise SystemExit(f"ablation: `aqtopo {' '.join(arguments)}` ended with exit code {code}")


def main() -> None:
    """Simulate what is not there, train what is not done, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("worlds", nargs="*", default=WORLDS, metavar="WORLD")
    parser.add_argument("--jobs", default="2", help="trainings side by side")
    given = parser.parse_args()
    began = time.monotonic()
    for world in given.worlds:
        store = f"data/ablation_{world}.zarr"
        if not Path(store).exists():
            run("synth", store, "--world", world, *DOMAIN, *YEARS)
        place = ("--set", f"data.store={store}", "--out", f"runs/ablation/{world}")
        grid = [part for factor in FACTORS for part in ("--grid", factor)]
        beside = [part for variant in ALSO[world] for part in ("--also", variant)]
        run("ablate", CONFIG, *grid, *beside, "--seeds", SEEDS, "--jobs", given.jobs, *place)
    print(f"ablation of {', '.join(given.worlds)}: {(time.monotonic() - began) / 60:.1f} minutes")  # noqa: T201


if __name__ == "__main__":
    main()
