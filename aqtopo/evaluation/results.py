"""What an evaluation leaves in the run directory: scores, the sums behind them, and a table of stations.

`scores.json` is for people and programs without xarray (`aqtopo.evaluation.score_file`); `scores.zarr` has
one group a table, to be read with xarray; `scores_stations.csv` has a line for each station, pollutant,
horizon and forecast. Scores against another model leave the run's own alone: their files are called
`scores_against_NAME`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from aqtopo.evaluation.areas import WHOLE
from aqtopo.evaluation.cases import FORECASTS
from aqtopo.evaluation.evaluate import Evaluation
from aqtopo.evaluation.score_file import write_scores
from aqtopo.evaluation.spectra import TRUTH
from aqtopo.inference.forecast_file import write_aside

SCORES = "scores"
"""The name of the files of a run's own scores, without suffix."""


def write_results(done: Evaluation, run_dir: Path) -> list[Path]:
    """Write scores, sums and stations in place of older ones, each aside first, so never half of it.

    Returns:
        What was written, `.json` first.

    Raises:
        ValueError: the run directory cannot be written.
    """
    rivals = [name for name in done.scores["forecast"].values.tolist() if name not in FORECASTS]
    stem = "_against_".join([SCORES, *rivals])
    by_station = done.strata.get("station")
    strata = {name: scores for name, scores in done.strata.items() if name != "station"}
    others = {
        "exceedances": done.exceedances.sel(area=WHOLE, drop=True),
        "spectra": done.spectra[["resolved_km", "short_waves"]].drop_sel(forecast=TRUTH),
    }
    written = [write_scores(done.scores, run_dir, strata, others, f"{stem}.json")]
    written.append(write_tables(done.tables, run_dir, stem))
    if by_station is not None:
        written.append(run_dir / f"{stem}_stations.csv")
        write_aside(written[-1], lambda aside: station_frame(by_station).to_csv(aside, index=False))
    return written


def station_frame(by_station: xr.Dataset) -> Any:
    """Scores by station, a row for each station, pollutant, horizon and forecast, as a pandas DataFrame."""
    rows = by_station.drop_vars(["skill", "reference"]).to_dataframe().reset_index()
    first = ["station", "lat", "lon", "pollutant", "units", "horizon", "forecast", "count"]
    return rows[[*first, "rmse", "mae", "bias", "acc"]].query("count > 0")


def write_tables(tables: Mapping[str, xr.Dataset], run_dir: Path, stem: str = SCORES) -> Path:
    """Write tables into a run directory in place of older ones.

    Raises:
        ValueError: the place cannot be written.
    """
    path = run_dir / f"{stem}.zarr"
    tree = xr.DataTree.from_dict({key: _without_fixed_text(table) for key, table in tables.items()})
    layout: dict[str, Any] = {"mode": "w-", "zarr_format": 3, "consolidated": False}
    write_aside(path, lambda aside: tree.to_zarr(aside, **layout))
    return path


def _without_fixed_text(table: xr.Dataset) -> xr.Dataset:
    """Names as text of any length: zarr v3 has no standard for numpy's text of fixed length."""
    fixed = {key: axis.astype(object) for key, axis in table.coords.items() if axis.dtype.kind == "U"}
    return table.assign_coords(fixed)


def read_table(run_dir: Path, table: str, stem: str = SCORES) -> xr.Dataset:
    """One table, in memory.

    Args:
        run_dir: the run directory.
        table: such as `by_day`; see `aqtopo.evaluation.evaluate.Evaluation.tables`.
        stem: the file's name without its suffix.

    Raises:
        ValueError: the run has not been evaluated, or the table is not there, or damaged.
    """
    path = run_dir / f"{stem}.zarr"
    remedy = f"Score the run with `aqtopo evaluate {run_dir}`."
    try:
        found: xr.Dataset = xr.open_zarr(path, group=table, consolidated=False, chunks=None)
        return found.load()
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"{path} has no table {table}. {remedy}") from error
    except (OSError, RuntimeError, ValueError) as error:  # zarr has no error of its own for a damaged chunk
        raise ValueError(f"the table {table} of {path} cannot be read ({error}). {remedy}") from error
