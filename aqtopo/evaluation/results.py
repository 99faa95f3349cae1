"""Files that an evaluation writes: scores.json, scores.zarr and scores_stations.csv."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import xarray as xr
from pydantic import AfterValidator, Field, model_validator

from aqtopo.checkpoint.files import write_durably
from aqtopo.config.record import Record, Time, read_record
from aqtopo.config.strict import NonNegative, Positive, Problem, refuse
from aqtopo.evaluation.evaluate import Evaluation
from aqtopo.evaluation.points import FORECASTS, REFERENCES, WHOLE
from aqtopo.evaluation.scores import count_wins
from aqtopo.evaluation.spectra import TRUTH
from aqtopo.inference.forecast_file import write_aside
from aqtopo.variables import VARIABLES


def _known(pollutant: str) -> str:
    if pollutant not in VARIABLES:
        refuse("pollutant", [Problem((), pollutant, "this aqtopo does not know such a pollutant")])
    return pollutant


Pollutant = Annotated[str, AfterValidator(_known)]


class Measures(Record):
    """One forecast's scores, in the pollutant's units; null without a scored point."""

    rmse: float | None
    """Root mean squared error."""
    mae: float | None
    """Mean absolute error."""
    bias: float | None
    """Mean of forecast less truth."""
    acc: float | None
    """Correlation of anomalies from climatology."""


class Skill(Record):
    """1 - RMSE of the model / RMSE of each reference; null where it cannot be known."""

    persistence: float | None
    """Against persistence."""
    climatology: float | None
    """Against climatology."""


class Entry(Record):
    """One pollutant at one horizon."""

    pollutant: Pollutant
    """Its short name."""
    horizon_h: Positive
    """Hours ahead."""
    units: str
    """Of the pollutant."""
    count: NonNegative
    """Points that were scored."""
    left_out: NonNegative
    """Points with a truth where some reference has no value."""
    model: Measures
    """The model's scores."""
    persistence: Measures
    """Those of persistence."""
    climatology: Measures
    """Those of climatology."""
    skill: Skill
    """What the model is worth beside the references."""


class Exceedance(Record):
    """How one forecast tells the days above a limit."""

    forecast: str
    """Whose."""
    pollutant: Pollutant
    """Of what."""
    horizon: Positive
    """Hours ahead."""
    limit: float
    """Of the 24-hour mean [ug m-3]."""
    hits: NonNegative
    """Days and cells above the limit that were forecast so."""
    misses: NonNegative
    """Those that were not."""
    false_alarms: NonNegative
    """Those that were forecast and did not come."""
    correct_negatives: NonNegative
    """Those that were neither forecast nor came."""
    csi: float | None
    """Critical success index."""


class Spectrum(Record):
    """How fine the structure of one forecast is."""

    forecast: str
    """Whose."""
    pollutant: Pollutant
    """Of what."""
    horizon: Positive
    """Hours ahead."""
    resolved_km: float | None
    """Shortest wavelength down to which it has at least half of the truth's power [km]."""
    short_waves: float | None
    """Its power over the shortest third of the wavelengths, as a share of the truth's."""


class Scores(Record):
    """The file."""

    format_version: Literal[2]
    """Must be 2, which this aqtopo writes."""
    run: str
    """Name of the run."""
    tag: str
    """The saved state that was scored."""
    split: Literal["validation", "test"]
    """Which part of the data."""
    years: tuple[int, ...]
    """Its years."""
    initialisations: Positive
    """How many forecasts were scored."""
    first_init: Time
    """Start of the first of them."""
    last_init: Time
    """Start of the last of them."""
    scores: Annotated[tuple[Entry, ...], Field(min_length=1)]
    """Every pollutant at every horizon, over all of the data."""
    strata: dict[str, dict[str, tuple[Entry, ...]]]
    """The same by season, hour and area."""
    exceedances: tuple[Exceedance, ...] = ()
    """Days above limits."""
    spectra: tuple[Spectrum, ...] = ()
    """How fine the forecasts' structure is."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        refuse("scores", _gaps(self))
        return self


def _gaps(scores: Scores) -> Iterator[Problem]:
    """What a table that is complete would have."""
    found = [(entry.pollutant, entry.horizon_h) for entry in scores.scores]
    pollutants, horizons = (dict.fromkeys(names) for names in zip(*found, strict=True))
    if sorted(found) != sorted((pollutant, horizon) for pollutant in pollutants for horizon in horizons):
        yield _incomplete(("scores",), len(found))
    for name, by_label in scores.strata.items():
        for label, entries in by_label.items():
            if [(entry.pollutant, entry.horizon_h) for entry in entries] != found:
                yield _incomplete(("strata", name, label), len(entries))
    by_pair: dict[tuple[str, int], set[str]] = {}
    for record in scores.exceedances:
        by_pair.setdefault((record.pollutant, record.horizon), set()).add(record.forecast)
    if any(not forecasts.issuperset(FORECASTS) for forecasts in by_pair.values()):
        yield Problem(("exceedances",), len(scores.exceedances), f"must have each of {', '.join(FORECASTS)}")


def _incomplete(path: tuple[str, ...], entries: int) -> Problem:
    return Problem(path, entries, "must have every pollutant at every horizon once, as `scores` has")


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
