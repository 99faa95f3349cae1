"""Run the experiments of docs/ablation.md: simulate each world and train every variant in it.

    python scripts/ablation.py [--jobs 2] [EXPERIMENT ...]

The plan was committed before the first training. The primary score of a mechanism is the change of the
squared error over all pollutants and horizons (`all`, squared), with Student's t over the seeds and Holm's
correction over the mechanisms of an experiment. After a kill, the same command resumes: finished stores and
trainings are kept. Results: runs/ablation/EXPERIMENT.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

CONFIG = "ds_configs/ablation_cpu.json"
DOMAIN = ("--grid", "16x32", "--lat", "22", "38", "--lon", "92", "124")
YEARS = ("--years", "2014", "2015", "2016", "2017", "2018", "--train-years", "2015", "2016")
FIRST_SEED = 10  # no earlier trial used this seed or a higher one

WIND_ORDER = "wind_order=true,false"
SECTORS = "wind_order=true sector_embedding=true"
PUBLISHED, UPHILL = "elevation_bias=published", "elevation_bias=uphill"
# Both heads: the hour of the day is an input, so no head has to find it on the whole map.
NEAR, ORIGIN = (f"local_bias={form} bias_blocks=[0,1]" for form in ("near", "origin"))
SCALES = "elevation_bias=published bias_blocks=[0,1] bias_scales=[1,4]"
POLLUTANTS = "pollutant_attention=true"
WITHOUT = ("data.forcings=[]", "data.history_hours=[]", "local_path=false")
MECHANISMS = (SECTORS, PUBLISHED, UPHILL, NEAR, ORIGIN, SCALES, POLLUTANTS)
WEATHER = 'data.weather_at_horizons=["u","v","temp","rh","psfc"]'


class Experiment(NamedTuple):
    """A world, the number of seeds, and the variants beside wind order and the baseline."""

    world: str
    seeds: int
    also: tuple[str, ...]
    settings: tuple[str, ...] = ()


EXPERIMENTS = {
    "ridges": Experiment("ridges", 6, (*MECHANISMS, *WITHOUT)),
    "ridges_weather": Experiment("ridges", 3, MECHANISMS, (WEATHER,)),
    "inert": Experiment("inert", 6, (*MECHANISMS, *WITHOUT)),
    # Without elevation, all forms of the elevation bias are equal.
    "flat": Experiment("flat", 3, (SECTORS, PUBLISHED, NEAR, ORIGIN, POLLUTANTS, *WITHOUT)),
}


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
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), metavar="EXPERIMENT")
    parser.add_argument("--jobs", default="2", help="concurrent trainings")
    options = parser.parse_args()
    start = time.monotonic()
    for name in options.experiments:
        world, seeds, also, settings = EXPERIMENTS[name]
        store = f"data/ablation_{world}.zarr"
        if not Path(store).exists():
            run("synth", store, "--world", world, *DOMAIN, *YEARS)
        grid = ("--grid", WIND_ORDER, *(part for variant in also for part in ("--also", variant)))
        changes = (f"data.store={store}", f"training.seed={FIRST_SEED}", *settings)
        overrides = (part for change in changes for part in ("--set", change))
        where = ("--seeds", str(seeds), "--jobs", options.jobs, "--out", f"runs/ablation/{name}")
        run("ablate", CONFIG, *grid, *overrides, *where)
    print(f"{', '.join(options.experiments)}: {(time.monotonic() - start) / 60:.1f} minutes")  # noqa: T201


if __name__ == "__main__":
    main()
