"""Cost of the linear references at 128 x 256 cells: processor time of a fit, and its memory.

A store of smooth random fields over 40 days, half of them in the training year. The time of a pass over the
data is proportional to the number of initial times, so `hours_at_most` scales it to those of the largest fit.
The coefficients are checked to be finite.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from aqtopo.config import load_config
from aqtopo.data import open_store, write_store
from aqtopo.data.statistics import write_statistics
from aqtopo.evaluation.linear import MAX_TIMES, Linear, LinearBaseline, Predictors
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS, VARIABLES
from benchmarks.measure import parse_arguments, peak_bytes, report

CONFIG = Path(__file__).parents[1] / "ds_configs" / "lumi_400gpu.json"
TRAINING_YEAR, VALIDATION_YEAR = 2016, 2017
DAYS = 40


def write_random_store(path: Path, grid: tuple[int, int]) -> None:
    """Write a store whose hours lie half before and half after the end of the training year."""
    middle = np.datetime64(f"{VALIDATION_YEAR}-01-01T00", "h")
    times = middle + np.arange(-12 * DAYS, 12 * DAYS)
    lat, lon = np.linspace(17.0, 49.0, grid[0]), np.linspace(73.0, 136.75, grid[1])
    lat2d, lon2d = np.meshgrid(lat, lon, indexing="ij")
    constant = {"elevation": 0 * lat2d + 100, "population": 0 * lat2d, "lat2d": lat2d, "lon2d": lon2d}
    static = np.stack([constant.get(name, np.ones(grid)) for name in STATIC_CHANNELS])
    generator = np.random.default_rng(0)

    def block(day: int) -> xr.Dataset:
        fields = np.empty((24, len(DYNAMIC_VARIABLES), *grid), np.float32)
        for place, name in enumerate(DYNAMIC_VARIABLES):
            variable = VARIABLES[name]
            assert variable.topoflow_mean is not None
            assert variable.topoflow_std is not None
            noise = 0.1 * generator.standard_normal((24, *grid), np.float32)
            fields[:, place] = variable.topoflow_mean + variable.topoflow_std * noise
        return xr.Dataset(
            {
                "fields": (("time", "channel", "lat", "lon"), fields),
                "static": (("static_channel", "lat", "lon"), static.astype(np.float32)),
            },
            coords={
                "time": times[24 * day : 24 * day + 24].astype("datetime64[ns]"),
                "channel": list(DYNAMIC_VARIABLES),
                "lat": lat,
                "lon": lon,
                "static_channel": list(STATIC_CHANNELS),
            },
            attrs={"source": "random numbers of a benchmark", "simulated": True},
        )

    write_store((block(day) for day in range(DAYS)), path)
    write_statistics(path, [TRAINING_YEAR])


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    grid = (16, 32) if options.quick else (128, 256)
    inputs = ("data.history_hours=[6,12,24]", 'data.weather_at_horizons=["u","v","temp","rh","psfc"]')
    years = (f"data.train_years=[{TRAINING_YEAR}]", f"data.validation_years=[{VALIDATION_YEAR}]")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.zarr"
        write_random_store(path, grid)
        store = open_store(path)
        data = load_config(CONFIG, [*inputs, *years]).data
        references = {"linear": Predictors.of_store(store), "linear_same": Predictors.of_run(store, data)}
        for name, predictors in references.items():
            fits: list[Linear] = []
            baseline = LinearBaseline(store, data, predictors)
            began = time.process_time()
            memory = peak_bytes(lambda work=baseline.fit, fits=fits: fits.append(work()))
            seconds = time.process_time() - began
            assert np.isfinite(fits[0].coefficients).all()
            rows.append(
                {
                    "reference": name,
                    "grid": f"{grid[0]} x {grid[1]}",
                    "predictors": len(predictors),
                    "initial_times": fits[0].times,
                    "processor_seconds": seconds,
                    "hours_at_most": seconds * MAX_TIMES / fits[0].times / 3600,
                    "gib_peak": memory / 2**30,
                }
            )
    report("regression", rows, options)


if __name__ == "__main__":
    main()
