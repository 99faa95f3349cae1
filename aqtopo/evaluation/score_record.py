"""What `scores.json` must hold to be read: all that this version uses of it, with types."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from aqtopo.config.record import Record, Time
from aqtopo.config.strict import NonNegative, Positive, Problem, raise_problems
from aqtopo.evaluation.cases import FORECASTS
from aqtopo.variables import VARIABLES


def _known(pollutant: str) -> str:
    if pollutant not in VARIABLES:
        raise_problems("pollutant", [Problem((), pollutant, "this aqtopo does not know such a pollutant")])
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
        raise_problems("scores", _gaps(self))
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
