"""Files in an ablation's folder, written by `aqtopo ablate` and read by `aqtopo report`.

OUT/results.json            the comparison, see `Results`
OUT/configs/N.json          configuration of training N, for `aqtopo train`
OUT/runs/VARIANT/seedS      its run directory
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from aqtopo.config import load_config
from aqtopo.config.record import Record, Time, read_record
from aqtopo.config.strict import Problem, raise_contradictions
from aqtopo.variables import Variable, Variables, with_defaults

ABLATION_FILE = "ablation.json"
RESULTS_FILE = "results.json"
CONFIGS = "configs"
RUNS = "runs"
FORMAT_VERSION: Final = 2

OVERALL = "all"
"""Score over all pollutants and horizons: the root of the mean over pairs of squared errors, each in standard
deviations of its pollutant in the training years. `all AREA` is the same over an area.
"""
VAL_LOSS = "val_loss"

NOT_SHOWN = "no difference shown"

SeedValues = tuple[float | None, ...]
"""One value per seed."""


def is_summary(score: str) -> bool:
    """Return True for a score over all pollutants and horizons, False for a score of one pair."""
    return score == VAL_LOSS or score.split()[:1] == [OVERALL]


def verdict(change: float | None, shown: bool) -> str:
    """Return `better`, `worse` or `NOT_SHOWN`; a lower score is better."""
    if not shown or change is None:
        return NOT_SHOWN
    return "better" if change < 0 else "worse"


class VariantResult(Record):
    """One variant, trained with every seed."""

    variant: str
    """Label."""
    folder: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """Folder of its run directories, below `runs`."""
    val_loss: SeedValues
    """Lowest validation losses."""
    overall_rmse: SeedValues
    """RMSE over the test years [standard deviations of the training years]."""
    alpha: SeedValues
    """Means of the learnt alpha [km-1]."""
    rmse: dict[str, SeedValues] = Field(default_factory=dict)
    """RMSE by pollutant and horizon, in the pollutant's units."""


class ScoreChange(Record):
    """Change of one score in one contrast [per cent], with 95% intervals; bounds are null if unknown."""

    contrast: str
    """Label of the contrast."""
    score: str
    """`all`, `all AREA`, `val_loss`, or `POLLUTANT HORIZON h`."""
    change: float | None
    """Negative is better."""
    days_low: float | None
    """Lower bound over days."""
    days_high: float | None
    """Upper bound over days."""
    seeds_low: float | None
    """Lower bound over seeds."""
    seeds_high: float | None
    """Upper bound over seeds."""
    shown: bool
    """True if both intervals lie on the same side of zero."""

    @property
    def is_summary(self) -> bool:
        """`is_summary` of the score."""
        return is_summary(self.score)

    @property
    def verdict(self) -> str:
        """`verdict` of the change."""
        return verdict(self.change, self.shown)

    @property
    def pair(self) -> tuple[str, str]:
        """Pollutant and horizon of a score of one pair."""
        pollutant, _, horizon = self.score.partition(" ")
        return pollutant, horizon


class Machine(Record):
    """Machine of the comparison."""

    platform: str
    """Operating system and processor."""
    cores: int | None
    """Cores of the host."""


class Results(Record):
    """Content of `results.json`."""

    format_version: Literal[2] = FORMAT_VERSION
    """Format of the file; must be 2."""
    run: str
    """Name of the varied run."""
    config_digest: str
    """Digest of its configuration."""
    store: str
    """Data store."""
    source: str | None = None
    """Origin of the data, from the store; null in older results."""
    simulated: bool | None = None
    """True if the store's data are simulated; null in older results."""
    commit: str | None = None
    """Commit of aqtopo at the time of the comparison; null outside a checkout."""
    factors: dict[str, tuple[Any, ...]]
    """Levels of each varied setting by its path, the baseline last."""
    seeds: tuple[int, ...]
    """Seeds of each variant."""
    starts: str
    """Comparison of the variants before the first step."""
    variables: tuple[Variable, ...] = ()
    """Descriptions of the pollutants; empty in older results, whose pollutants are CAQRA's."""
    variants: Annotated[tuple[VariantResult, ...], Field(min_length=1)]
    """Variants, the baseline last."""
    changes: Annotated[tuple[ScoreChange, ...], Field(min_length=1)]
    """Every score of every contrast."""
    created: Time
    """Time of the comparison."""
    machine: Machine
    """Machine of the comparison."""
    versions: dict[str, str | None]
    """Versions of the packages."""

    @property
    def described(self) -> Variables:
        """Description of each pollutant."""
        return with_defaults(self.variables)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        raise_contradictions("results", _gaps(self))
        return self


def _gaps(results: Results) -> Iterator[Problem]:
    """Yield the incomplete parts."""
    count = len(results.seeds)
    for at, one in enumerate(results.variants):
        for name in ("val_loss", "overall_rmse", "alpha"):
            if len(getattr(one, name)) != count:
                yield Problem(("variants", at, name), getattr(one, name), f"must hold {count}, one per seed")
    found = [(change.contrast, change.score) for change in results.changes]
    contrasts, scores = (dict.fromkeys(names) for names in zip(*found, strict=True))
    wanted = [(contrast, score) for contrast in contrasts for score in (scores | {OVERALL: None})]
    if sorted(found) != sorted(wanted):
        yield Problem(("changes",), len(found), f"must have `{OVERALL}` and each score once per contrast")
    pairs = {change.pair for change in results.changes if not change.is_summary}
    pollutants, horizons = ({pair[side] for pair in pairs} for side in (0, 1))
    if len(pairs) != len(pollutants) * len(horizons) or not pollutants <= results.described.keys():
        yield Problem(("changes",), len(found), "must have described pollutants, each at the same horizons")


def read_results(folder: Path) -> Results:
    """Read an ablation's `results.json`.

    Raises:
        ValueError: it is missing, damaged, or of another version.
    """
    path = folder / RESULTS_FILE
    again = "Run `aqtopo ablate` again" if path.exists() else "Let `aqtopo ablate` finish"
    return read_record(path, Results, f"{again}: it keeps finished trainings and resumes the others.")


def training_numbers(folder: Path) -> dict[tuple[str, str], int]:
    """Return the numbers of an ablation's trainings by variant folder and name of the run directory.

    The numbers are permanent: queued jobs identify their training by its number.

    Raises:
        ValueError: a training's configuration is damaged.
    """
    paths = {int(path.stem): path for path in (folder / CONFIGS).glob("*.json") if path.stem.isdecimal()}
    places = {number: Path(load_config(paths[number]).training.run_dir) for number in sorted(paths)}
    return {(place.parent.name, place.name): number for number, place in places.items()}


def is_ablation(folder: Path) -> bool:
    """Return True if `aqtopo ablate` made the folder, finished or not."""
    return any((folder / name).exists() for name in (ABLATION_FILE, RESULTS_FILE))
