"""Files of an evaluation: scores.json, scores.csv, scores.zarr and scores_stations.csv.

`scores.json` holds the scores for people and programs without xarray: the provenance; `scores`, an entry for
each pollutant and horizon; `strata`, the same by season, hour and area; `exceedances` and `spectra`, an
entry for each forecast, pollutant and horizon. Missing values are null. `scores.csv` has a row for each score
over the whole split, `scores.zarr` one group per table of sums. Scores against another model or with a
weather forecast go to `scores_against_NAME` or `scores_weather_NAME` and leave the run's own unchanged.
"""

import json
import math
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from aqtopo.checkpoint.files import write_durably
from aqtopo.config.record import read_record
from aqtopo.evaluation.evaluate import Evaluation
from aqtopo.evaluation.points import BASELINES, FORECASTS, WHOLE
from aqtopo.evaluation.score_record import FORMAT_VERSION, ScoreRecord
from aqtopo.evaluation.scores import count_wins, squared_errors, tidy_scores
from aqtopo.evaluation.spectra import TRUTH
from aqtopo.inference.forecast_file import write_atomically
from aqtopo.refusal import READ_ERRORS
from aqtopo.safe_files import special_below
from aqtopo.variables import variables_as_json

MAX_TABLE_BYTES = 2**30
"""Largest size of a table that is read: a damaged shape must not take all memory."""

SCORES_FILE = "scores.json"

_MEASURES = ("rmse", "mae", "bias", "acc")
_COUNTS = ("count", "left_out")
_NOT_ATTRIBUTES = {"format_version", "summary", "scores", "strata", "exceedances", "spectra"}


def scores_to_json(
    scores: xr.Dataset,
    strata: Mapping[str, xr.Dataset] | None = None,
    others: Mapping[str, xr.Dataset] | None = None,
) -> dict[str, Any]:
    """Return the content of `scores.json`.

    Args:
        scores: over the whole split, (forecast, pollutant, horizon) and (reference, pollutant, horizon).
        strata: the same with one more dimension, which has the stratum's name.
        others: further tables (forecast, pollutant, horizon), by their key in the file.
    """
    wins = count_wins(scores)
    return {
        "format_version": FORMAT_VERSION,
        **scores.attrs,
        "summary": {
            "pairs": wins.pairs,
            **{f"model_beats_{name}": count for name, count in wins.over.items()},
            "model_beats_all": wins.over_all,
            "squared_error": {name: _or_null(value) for name, value in squared_errors(scores).items()},
        },
        "scores": _entries(scores),
        "strata": {
            name: {str(label): _entries(by_label.sel({name: label})) for label in by_label[name].values}
            for name, by_label in (strata or {}).items()
        },
        **{name: _records(table) for name, table in (others or {}).items()},
    }


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _records(table: xr.Dataset) -> list[dict[str, Any]]:
    """Return a flat entry for every forecast, pollutant and horizon."""
    rows = table.to_dataframe().reset_index().to_dict("records")
    return [{str(k): _or_null(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _entries(scores: xr.Dataset) -> list[dict[str, Any]]:
    """Return an entry for every pollutant and horizon of (forecast, pollutant, horizon) scores."""
    # Plain arrays: selecting each number with xarray takes seconds for the strata.
    ordered = scores.transpose("forecast", "reference", "pollutant", "horizon")
    arrays = {str(name): values.values for name, values in ordered.items()}
    forecasts, references = (ordered[axis].values.tolist() for axis in ("forecast", "reference"))

    def entry(pair: tuple[int, int]) -> dict[str, Any]:
        c, k = pair
        return {
            "pollutant": str(ordered["pollutant"].values[c]),
            "horizon_h": int(ordered["horizon"].values[k]),
            "units": str(ordered["units"].values[c]),
            **{name: int(arrays[name][pair]) for name in _COUNTS},
            **{
                name: {measure: _or_null(arrays[measure][f, c, k]) for measure in _MEASURES}
                for f, name in enumerate(forecasts)
            },
            "skill": {name: _or_null(arrays["skill"][r, c, k]) for r, name in enumerate(references)},
        }

    return [entry((c, k)) for c, k in np.ndindex(ordered.sizes["pollutant"], ordered.sizes["horizon"])]


def scores_from_record(content: ScoreRecord) -> xr.Dataset:
    """Return the dataset that `scores_to_json` was given."""
    entries = {(entry.pollutant, entry.horizon_h): entry for entry in content.scores}
    pollutants, horizons = (list(dict.fromkeys(keys)) for keys in zip(*entries, strict=True))

    def array(path: str, dtype: type = float) -> np.ndarray[Any, Any]:
        value = attrgetter(path)
        rows = [[value(entries[pollutant, horizon]) for horizon in horizons] for pollutant in pollutants]
        return np.array(rows, dtype=dtype)  # NaN for None

    per_pair = ("pollutant", "horizon")
    return xr.Dataset(
        {
            **{m: (("forecast", *per_pair), [array(f"{name}.{m}") for name in FORECASTS]) for m in _MEASURES},
            "skill": (("reference", *per_pair), [array(f"skill.{name}") for name in BASELINES]),
            **{name: (per_pair, array(name, int)) for name in _COUNTS},
        },
        coords={
            "forecast": list(FORECASTS),
            "reference": list(BASELINES),
            "pollutant": pollutants,
            "units": ("pollutant", [entries[name, horizons[0]].units for name in pollutants]),
            "horizon": ("horizon", horizons, {"units": "hours"}),
        },
        attrs=content.model_dump(mode="json", exclude={*_NOT_ATTRIBUTES, "variables"})
        | {"variables": variables_as_json(content.variables)},
    )


def write_scores(
    scores: xr.Dataset,
    run_dir: Path,
    strata: Mapping[str, xr.Dataset] | None = None,
    others: Mapping[str, xr.Dataset] | None = None,
    name: str = SCORES_FILE,
) -> Path:
    """Write `scores.json`, or `name`, into a run directory by atomic rename."""
    path = run_dir / name
    content = scores_to_json(scores, strata, others)
    write_durably(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def read_score_file(run_dir: Path) -> ScoreRecord:
    """Read a run's `scores.json`.

    Raises:
        ValueError: the file is missing, damaged or of another version.
    """
    path = run_dir / SCORES_FILE
    again = " again" if path.exists() else ""
    return read_record(path, ScoreRecord, f"Score the run{again} with `aqtopo evaluate {run_dir}`.")


SCORES = "scores"
"""Stem of the files of a run's own scores."""


def write_results(done: Evaluation, run_dir: Path) -> list[Path]:
    """Write scores, sums and stations, each by atomic rename; return their paths, `.json` first.

    Raises:
        ValueError: the run directory cannot be written.
    """
    against = [name for name in done.scores["forecast"].values.tolist() if name not in FORECASTS]
    weather = done.scores.attrs.get("weather_forecast")
    stem = "_against_".join([SCORES if weather is None else f"{SCORES}_weather_{weather}", *against])
    by_station = done.strata.get("station")
    strata = {name: scores for name, scores in done.strata.items() if name != "station"}
    others = {
        "exceedances": done.exceedances.sel(area=WHOLE, drop=True),
        "spectra": done.spectra[["resolved_km", "short_waves"]].drop_sel(forecast=TRUTH),
    }
    written = [write_scores(done.scores, run_dir, strata, others, f"{stem}.json")]
    axes = ["pollutant", "lead_time", "score", "forecast"]
    rows = tidy_scores(done.scores).to_dataframe(dim_order=axes).reset_index()
    rows = rows[[*axes, "value", "units", "count"]].assign(**_weather(done.scores))
    written.append(_write_csv(rows, run_dir / f"{stem}.csv"))
    written.append(write_tables(done.tables, run_dir, stem))
    if by_station is not None:
        written.append(_write_csv(station_frame(by_station), run_dir / f"{stem}_stations.csv"))
    return written


def _write_csv(frame: Any, path: Path) -> Path:
    """Write a pandas DataFrame by atomic rename; return the path."""
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))
    return path


def station_frame(by_station: xr.Dataset) -> Any:
    """Return a pandas DataFrame with a row for each station, pollutant, horizon and forecast."""
    rows = by_station.drop_vars(["skill", "reference"]).to_dataframe().reset_index()
    first = ["station", "lat", "lon", "pollutant", "units", "horizon", "forecast", "count"]
    return rows[[*first, "rmse", "mae", "bias", "acc"]].query("count > 0").assign(**_weather(by_station))


def _weather(scores: xr.Dataset) -> dict[str, str]:
    """Return the column `weather`, the source of the weather at the valid times, if the run reads it."""
    return {"weather": scores.attrs["weather"]} if "weather" in scores.attrs else {}


def write_tables(tables: Mapping[str, xr.Dataset], run_dir: Path, stem: str = SCORES) -> Path:
    """Write tables of sums into a run directory by atomic rename.

    Raises:
        ValueError: the run directory cannot be written.
    """
    path, tree = run_dir / f"{stem}.zarr", {}
    for key, table in tables.items():
        # Variable-length text, because zarr v3 has no standard for numpy's fixed-length text.
        texts = {name: axis.astype(object) for name, axis in table.coords.items() if axis.dtype.kind == "U"}
        tree[key] = table.assign_coords(texts)
    layout: dict[str, Any] = {"mode": "w-", "zarr_format": 3, "consolidated": False}
    write_atomically(path, lambda temporary: xr.DataTree.from_dict(tree).to_zarr(temporary, **layout))
    return path


def read_table(run_dir: Path, table: str, stem: str = SCORES) -> xr.Dataset:
    """Read one of `Evaluation.tables` from `STEM.zarr`.

    Raises:
        ValueError: the table is missing or damaged.
    """
    path = run_dir / f"{stem}.zarr"
    remedy = f"Score the run with `aqtopo evaluate {run_dir}`."
    try:
        if path.is_dir() and (special := special_below(path)):
            raise ValueError(f"{special} is a pipe or a device")
        group = zarr.open_group(path, path=table, mode="r", use_consolidated=False)
        size = sum(array.nbytes for _, array in group.arrays())
        if size > MAX_TABLE_BYTES:
            raise ValueError(f"it declares {size} bytes, more than the maximum of {MAX_TABLE_BYTES}")
        found: xr.Dataset = xr.open_zarr(path, group=table, consolidated=False, chunks=None)
        return found.load()
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"{path} has no table {table}. {remedy}") from error
    except READ_ERRORS as error:
        raise ValueError(f"the table {table} of {path} cannot be read ({error}). {remedy}") from error
