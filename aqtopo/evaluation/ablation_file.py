"""What lies in an ablation's folder, as `aqtopo ablate` writes it and `aqtopo report` reads it.

OUT/results.json            what it found, see `Results`
OUT/configs/N.json          the configuration of training N, as `aqtopo train` takes it
OUT/runs/VARIANT/seedS      its run directory
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from aqtopo.config import load_config
from aqtopo.config.record import Record, Time, read_record
from aqtopo.config.strict import Problem, raise_problems
from aqtopo.variables import VARIABLES

ABLATION_FILE = "ablation.json"
RESULTS_FILE = "results.json"
CONFIGS = "configs"
RUNS = "runs"
FORMAT_VERSION: Final = 2

OVERALL = "all"
"""The score that stands for all pollutants and horizons: the root of the mean over pairs of squared errors,
each in deviations of its pollutant in the training years. With an area behind it, that of the area."""
VAL_LOSS = "val_loss"

NOT_SHOWN = "no difference shown"

Numbers = tuple[float | None, ...]
"""One a seed."""


def sums_up(score: str) -> bool:
    """Whether a score is of all pollutants and horizons, not of one pair of them."""
    return score == VAL_LOSS or score.split()[:1] == [OVERALL]


def verdict(change: float | None, shown: bool) -> str:
    """`better`, `worse` or `NOT_SHOWN`; a lower score is better."""
    if not shown or change is None:
        return NOT_SHOWN
    return "better" if change < 0 else "worse"


class Compared(Record):
    """One variant, trained with every seed."""

    variant: str
    """What it is, for people."""
    folder: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Holds its run directories, below `runs`."""
    val_loss: Numbers
    """Lowest validation losses."""
    overall_rmse: Numbers
    """Of the test years [deviations of the training years]."""
    alpha: Numbers
    """Mean barrier strengths that were learnt [km-1]."""
    rmse: dict[str, Numbers] = Field(default_factory=dict)
    """By pollutant and horizon, in the pollutant's units."""


class Change(Record):
    """How one score differs in one contrast [per cent]; bounds are of 95% intervals, null where unknown."""

    contrast: str
    """What is compared with what."""
    score: str
    """`all`, `all AREA`, `val_loss`, or `POLLUTANT HORIZON h`."""
    change: float | None
    """Negative is better."""
    days_low: float | None
    """Over days."""
    days_high: float | None
    """Over days."""
    seeds_low: float | None
    """Over seeds."""
    seeds_high: float | None
    """Over seeds."""
    shown: bool
    """Whether both intervals lie on the same side of zero."""

    @property
    def sums_up(self) -> bool:
        """As the function, of its own score."""
        return sums_up(self.score)

    @property
    def verdict(self) -> str:
        """As the function, of its own change."""
        return verdict(self.change, self.shown)

    @property
    def pair(self) -> tuple[str, str]:
        """Pollutant and horizon, of a score that does not sum up."""
        pollutant, _, horizon = self.score.partition(" ")
        return pollutant, horizon


class Machine(Record):
    """Where the comparison was made."""

    platform: str
    """Operating system and processor."""
    cores: int | None
    """Of the host."""


class Results(Record):
    """The file."""

    format_version: Literal[2] = FORMAT_VERSION
    """Must be 2, which this aqtopo writes."""
    run: str
    """Name of the run that was varied."""
    config_digest: str
    """Of its configuration."""
    store: str
    """Its data."""
    source: str | None = None
    """Where the data come from, as the store says; null in results of before this was kept."""
    simulated: bool | None = None
    """Whether the store says that its data are simulated; null as above."""
    commit: str | None = None
    """Of aqtopo, when the comparison was made; null outside a checkout."""
    factors: dict[str, tuple[Any, ...]]
    """What was varied: by path the levels, the baseline last."""
    seeds: tuple[int, ...]
    """Of the trainings of each variant."""
    starts: str
    """What the variants had in common before the first step."""
    variants: Annotated[tuple[Compared, ...], Field(min_length=1)]
    """The last one is the baseline."""
    changes: Annotated[tuple[Change, ...], Field(min_length=1)]
    """Every score of every contrast."""
    created: Time
    """When the comparison was made."""
    machine: Machine
    """Where."""
    versions: dict[str, str | None]
    """Of the packages."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        raise_problems("results", _gaps(self))
        return self


def _gaps(results: Results) -> Iterator[Problem]:
    """What results that are complete would have."""
    count = len(results.seeds)
    for at, one in enumerate(results.variants):
        for name in ("val_loss", "overall_rmse", "alpha"):
            if len(getattr(one, name)) != count:
                yield Problem(("variants", at, name), getattr(one, name), f"must hold {count}, one a seed")
    found = [(change.contrast, change.score) for change in results.changes]
    contrasts, scores = (dict.fromkeys(names) for names in zip(*found, strict=True))
    wanted = [(contrast, score) for contrast in contrasts for score in (scores | {OVERALL: None})]
    if sorted(found) != sorted(wanted):
        yield Problem(("changes",), len(found), f"must have `{OVERALL}` and each other score once a contrast")
    pairs = {change.pair for change in results.changes if not change.sums_up}
    pollutants, horizons = ({pair[side] for pair in pairs} for side in (0, 1))
    if len(pairs) != len(pollutants) * len(horizons) or not pollutants <= VARIABLES.keys():
        yield Problem(("changes",), len(found), "must have known pollutants, each at the same horizons")


def read_results(folder: Path) -> Results:
    """What an ablation's `results.json` holds.

    Raises:
        ValueError: it is missing, damaged, or of another version.
    """
    path = folder / RESULTS_FILE
    again = "Run `aqtopo ablate` again" if path.exists() else "Let `aqtopo ablate` finish"
    return read_record(path, Results, f"{again}: it keeps what is trained, and goes on where it was.")


def numbered(folder: Path) -> dict[tuple[str, str], int]:
    """The numbers that an ablation's trainings have, by variant's folder and name of the run directory.

    Jobs that wait in a queue know of their training nothing but its number, so that stays what it is.

    Raises:
        ValueError: a training's configuration is damaged.
    """
    paths = {int(path.stem): path for path in (folder / CONFIGS).glob("*.json") if path.stem.isdecimal()}
    places = {number: Path(load_config(paths[number]).training.run_dir) for number in sorted(paths)}
    return {(place.parent.name, place.name): number for number, place in places.items()}
