"""Content of scores.json: its keys, their meaning, and what makes it complete."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from aqtopo.config.record import Record, Time
from aqtopo.config.strict import NonNegative, Positive, Problem, raise_contradictions
from aqtopo.evaluation.points import BASELINES, FORECASTS
from aqtopo.variables import NAME_PATTERN, Variable, Variables, with_defaults

FORMAT_VERSION = 2
Pollutant = Annotated[str, Field(pattern=NAME_PATTERN)]


class Measures(Record):
    """Scores of one forecast, in the pollutant's units; null without a scored point."""

    rmse: float | None
    """Root mean squared error."""
    mae: float | None
    """Mean absolute error."""
    bias: float | None
    """Mean of forecast minus truth."""
    acc: float | None
    """Correlation of anomalies from climatology."""


class Skill(Record):
    """1 - RMSE of the model / RMSE of each baseline, by the baseline's name; null if undefined."""

    __pydantic_extra__: dict[str, float | None]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        raise_contradictions("skill", _absent(BASELINES, self.__pydantic_extra__))
        return self


class PairScores(Record):
    """Scores of one pollutant at one horizon; each forecast has `Measures` under its name."""

    __pydantic_extra__: dict[str, Measures]

    pollutant: Pollutant
    """Its short name."""
    horizon_h: Positive
    """Lead time [h]."""
    units: str
    """Units of the pollutant."""
    count: NonNegative
    """Scored points."""
    left_out: NonNegative
    """Points with a truth where a baseline has no value."""
    skill: Skill
    """Skill of the model against each baseline."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        raise_contradictions("scores", _absent(FORECASTS, self.__pydantic_extra__))
        return self


def _absent(names: Iterable[str], given: Mapping[str, object]) -> Iterator[Problem]:
    return (Problem((name,), None, "must be given") for name in names if name not in given)


class Exceedance(Record):
    """Counts of one forecast for days above a limit."""

    forecast: str
    """Name of the forecast."""
    pollutant: Pollutant
    """Short name."""
    horizon: Positive
    """Lead time [h]."""
    limit: float
    """Limit of the 24-hour mean [ug m-3]."""
    hits: NonNegative
    """Days and cells above the limit, forecast above it."""
    misses: NonNegative
    """Days and cells above the limit, forecast below it."""
    false_alarms: NonNegative
    """Days and cells below the limit, forecast above it."""
    correct_negatives: NonNegative
    """Days and cells below the limit, forecast below it."""
    csi: float | None
    """Critical success index."""


class Spectrum(Record):
    """Spectral scores of one forecast."""

    forecast: str
    """Name of the forecast."""
    pollutant: Pollutant
    """Short name."""
    horizon: Positive
    """Lead time [h]."""
    resolved_km: float | None
    """Shortest wavelength down to which it has at least half of the truth's power [km]."""
    short_waves: float | None
    """Its power over the shortest third of the wavelengths, divided by the truth's."""


class ScoreRecord(Record):
    """Content of `scores.json`."""

    format_version: Literal[2]
    """Format of the file; must be 2."""
    run: str
    """Name of the run."""
    tag: str
    """The saved state that was scored."""
    split: Literal["validation", "test"]
    """Scored split."""
    years: tuple[int, ...]
    """Years of the split."""
    initialisations: Positive
    """Number of scored forecasts."""
    first_init: Time
    """First initial time."""
    last_init: Time
    """Last initial time."""
    weighting: str = ""
    """Weights of the cells; empty in older files, in which all are equal."""
    variables: tuple[Variable, ...] = ()
    """Descriptions of the pollutants; empty in older files, whose pollutants are CAQRA's."""
    scores: Annotated[tuple[PairScores, ...], Field(min_length=1)]
    """Scores of every pollutant at every horizon, over the whole split."""
    strata: dict[str, dict[str, tuple[PairScores, ...]]]
    """Scores by season, hour and area."""
    exceedances: tuple[Exceedance, ...] = ()
    """Days above limits."""
    spectra: tuple[Spectrum, ...] = ()
    """Spectral scores."""

    @property
    def described(self) -> Variables:
        """Description of each pollutant, in the order of `scores`."""
        known = with_defaults(self.variables)
        names = dict.fromkeys(entry.pollutant for entry in self.scores)
        return {name: known[name] for name in names if name in known}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        raise_contradictions("scores", _gaps(self))
        return self


def _gaps(scores: ScoreRecord) -> Iterator[Problem]:
    """Yield the incomplete parts."""
    found = [(entry.pollutant, entry.horizon_h) for entry in scores.scores]
    pollutants, horizons = (dict.fromkeys(names) for names in zip(*found, strict=True))
    for name in pollutants:
        if name not in scores.described:
            yield Problem(("variables",), name, "is an undescribed pollutant")
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
