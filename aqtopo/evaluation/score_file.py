"""`scores.json`: scores with everything needed to know later what they are scores of.

The head of the file is the dataset's attributes; `scores` has one entry a pollutant and horizon, with the
units, the number of points, RMSE, MAE, bias and anomaly correlation of every forecast, and the model's skill;
`strata` has such entries by season, hour and area. `exceedances` and `spectra` have one a forecast, pollutant
and horizon. What has no value is null.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from aqtopo.checkpoint.files import write_durably
from aqtopo.config.record import read_record
from aqtopo.evaluation.cases import FORECASTS, REFERENCES
from aqtopo.evaluation.score_record import Entry, Scores
from aqtopo.evaluation.scores import count_wins

SCORES_FILE = "scores.json"
FORMAT_VERSION = 2

_MEASURES = ("rmse", "mae", "bias", "acc")
_COUNTS = ("count", "left_out")
_NOT_ATTRIBUTES = {"format_version", "summary", "scores", "strata", "exceedances", "spectra"}


def scores_as_json(
    scores: xr.Dataset,
    strata: Mapping[str, xr.Dataset] | None = None,
    others: Mapping[str, xr.Dataset] | None = None,
) -> dict[str, Any]:
    """What `scores.json` holds.

    Args:
        scores: over all of the data, (forecast, pollutant, horizon) and (reference, pollutant, horizon).
        strata: the same with one more dimension, of the stratum's name.
        others: further tables (forecast, pollutant, horizon), by what they are called in the file.
    """
    wins = count_wins(scores)
    return {
        "format_version": FORMAT_VERSION,
        **scores.attrs,
        "summary": {
            "pairs": wins.pairs,
            **{f"model_beats_{name}": count for name, count in wins.over.items()},
            "model_beats_all": wins.over_all,
        },
        "scores": _entries(scores),
        "strata": {
            name: {str(label): _entries(by_label.sel({name: label})) for label in by_label[name].values}
            for name, by_label in (strata or {}).items()
        },
        **{name: _records(table) for name, table in (others or {}).items()},
    }


def _records(table: xr.Dataset) -> list[dict[str, Any]]:
    """A flat entry for every forecast, pollutant and horizon."""
    rows = table.to_dataframe().reset_index().to_dict("records")
    return [
        {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]


def _entries(scores: xr.Dataset) -> list[dict[str, Any]]:
    """One entry for every pollutant and horizon of (forecast, pollutant, horizon) scores."""
    # As plain arrays: selecting each number with xarray takes seconds for the strata.
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
                name: {measure: _number(arrays[measure][f, c, k]) for measure in _MEASURES}
                for f, name in enumerate(forecasts)
            },
            "skill": {name: _number(arrays["skill"][r, c, k]) for r, name in enumerate(references)},
        }

    return [entry((c, k)) for c, k in np.ndindex(ordered.sizes["pollutant"], ordered.sizes["horizon"])]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def scores_from_file(content: Scores) -> xr.Dataset:
    """The dataset that `scores_as_json` was given."""
    entries = {(entry.pollutant, entry.horizon_h): entry for entry in content.scores}
    pollutants, horizons = (list(dict.fromkeys(keys)) for keys in zip(*entries, strict=True))

    def array(*keys: str, dtype: type = float) -> np.ndarray[Any, Any]:
        rows = [[_dig(entries[pollutant, horizon], keys) for horizon in horizons] for pollutant in pollutants]
        return np.array(rows, dtype=dtype)

    per_pair = ("pollutant", "horizon")
    return xr.Dataset(
        {
            **{m: (("forecast", *per_pair), [array(name, m) for name in FORECASTS]) for m in _MEASURES},
            "skill": (("reference", *per_pair), [array("skill", name) for name in REFERENCES]),
            **{name: (per_pair, array(name, dtype=int)) for name in _COUNTS},
        },
        coords={
            "forecast": list(FORECASTS),
            "reference": list(REFERENCES),
            "pollutant": pollutants,
            "units": ("pollutant", [entries[name, horizons[0]].units for name in pollutants]),
            "horizon": ("horizon", horizons, {"units": "hours"}),
        },
        attrs=content.model_dump(mode="json", exclude=_NOT_ATTRIBUTES),
    )


def _dig(entry: Entry, keys: tuple[str, ...]) -> float:
    value: Any = entry
    for key in keys:
        value = getattr(value, key)
    return math.nan if value is None else value


def write_scores(
    scores: xr.Dataset,
    run_dir: Path,
    strata: Mapping[str, xr.Dataset] | None = None,
    others: Mapping[str, xr.Dataset] | None = None,
    name: str = SCORES_FILE,
) -> Path:
    """Write `scores.json`, or `name`, into a run directory in place of an older one, never half of it."""
    path = run_dir / name
    content = scores_as_json(scores, strata, others)
    write_durably(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def read_scores(run_dir: Path) -> xr.Dataset:
    """A run's scores over all of the data.

    Raises:
        ValueError: as `read_score_file`.
    """
    return scores_from_file(read_score_file(run_dir))


def read_score_file(run_dir: Path) -> Scores:
    """Read what a run's `scores.json` holds.

    Raises:
        ValueError: the run has none, or the file is not one that this version wrote.
    """
    path = run_dir / SCORES_FILE
    again = " again" if path.exists() else ""
    return read_record(path, Scores, f"Score the run{again} with `aqtopo evaluate {run_dir}`.")
