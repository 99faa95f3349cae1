"""`scores.zarr`: the sums behind the scores, one zarr group a table, to be read with xarray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from aqtopo.evaluation.forecast_file import write_aside

SUMS_FILE = "scores.zarr"


def write_tables(tables: Mapping[str, xr.Dataset], run_dir: Path, name: str = SUMS_FILE) -> Path:
    """Write tables into a run directory in place of older ones; aside first, so never half of them.

    Raises:
        ValueError: the place cannot be written.
    """
    tree = xr.DataTree.from_dict({key: _without_fixed_text(table) for key, table in tables.items()})
    layout: dict[str, Any] = {"mode": "w-", "zarr_format": 3, "consolidated": False}
    write_aside(run_dir / name, lambda aside: tree.to_zarr(aside, **layout))
    return run_dir / name


def _without_fixed_text(table: xr.Dataset) -> xr.Dataset:
    """Names as text of any length: zarr v3 has no standard for numpy's text of fixed length."""
    fixed = {key: axis.astype(object) for key, axis in table.coords.items() if axis.dtype.kind == "U"}
    return table.assign_coords(fixed)


def read_table(run_dir: Path, table: str, name: str = SUMS_FILE) -> xr.Dataset:
    """One table, in memory.

    Args:
        run_dir: the run directory.
        table: such as `by_day`; see `aqtopo.evaluation.evaluate.Evaluation.tables`.
        name: the file.

    Raises:
        ValueError: the run has not been evaluated, or the table is not there.
    """
    try:
        found: xr.Dataset = xr.open_zarr(run_dir / name, group=table, consolidated=False, chunks=None)
        return found.load()
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(
            f"{run_dir / name} has no table {table}. Score the run with `aqtopo evaluate {run_dir}`."
        ) from error
