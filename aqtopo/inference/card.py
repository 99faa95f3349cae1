"""Card of an exported model, whose files have the names that Hugging Face uses.

OUT/config.json         provenance, scores, normalisation, hashes of the tensors' files
OUT/model.safetensors   every weight by name in fp32, as `aqtopo evaluate` uses them
OUT/static.safetensors  static fields and coordinates of the grid
OUT/README.md           the card for people

Exports of earlier versions hold `card.json` and `weights.safetensors` instead; they can be loaded too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aqtopo.checkpoint.files import FileName, FileRecord
from aqtopo.checkpoint.tags import Tag
from aqtopo.config.record import read_record
from aqtopo.config.strict import Strict
from aqtopo.variables import Variable

CARD_FILE = "config.json"
MODEL_FILE = "model.safetensors"
README_FILE = "README.md"
EARLIER_CARD_FILE, EARLIER_MODEL_FILE = "card.json", "weights.safetensors"
STATIC_FILE = "static.safetensors"

MODULE = "module"
"""Name of the state of a model that other code trained."""


class DataFacts(Strict):
    """Training data."""

    source: str
    simulated: bool
    digest: str
    train_years: tuple[int, ...]
    validation_years: tuple[int, ...]
    test_years: tuple[int, ...]
    cells: tuple[int, int]
    """Rows and columns of the grid."""
    lat_range: tuple[float, float]
    """Degrees north."""
    lon_range: tuple[float, float]
    """Degrees east."""


class NormalizationFacts(Strict):
    """Normalisation of the inputs, by variable, in its units."""

    kind: str
    statistics_years: tuple[int, ...]
    mean: dict[str, float]
    std: dict[str, Annotated[float, Field(ge=0)]]
    """Population standard deviations; 0 for a constant channel."""


class Card(Strict):
    """Content of `config.json`."""

    model_type: Literal["aqtopo"] = "aqtopo"
    architectures: tuple[str, ...] = ("AirQualityViT",)
    format_version: Literal[1, 2] = 2
    name: str
    description: str
    exported: str
    state: Tag | None
    """Saved state of a run; None for a module that was trained without aqtopo's trainer."""
    tag: str
    data: DataFacts
    normalization: NormalizationFacts
    inputs: tuple[str, ...] = ()
    """All inputs in the model's order; empty in cards of earlier versions."""
    variables: tuple[Variable, ...] = ()
    """Descriptions of the run's inputs and targets; empty in older exports, whose variables are CAQRA's."""
    scores: dict[str, Any] | None
    """Content of `scores.json` for this state, without its strata; None if the state was not evaluated."""
    config: dict[str, Any]
    config_digest: str
    trained_with: dict[str, Any]
    """Content of `run.json`: machine, versions and commit; empty without a run."""
    exported_with: dict[str, str | None]
    files: dict[FileName, FileRecord]

    @property
    def model_file(self) -> str:
        """Name of the file of weights."""
        return MODEL_FILE if MODEL_FILE in self.files else EARLIER_MODEL_FILE


def is_export(path: Path) -> bool:
    """Return True if a folder is an exported model."""
    return (path / MODEL_FILE).is_file() or (path / EARLIER_CARD_FILE).is_file()


def read_card(folder: Path) -> Card:
    """Read the card of an exported model.

    Raises:
        ValueError: it is missing, damaged or of another version.
    """
    name = CARD_FILE if (folder / MODEL_FILE).is_file() else EARLIER_CARD_FILE
    card = read_record(folder / name, Card, "Export the model again with `aqtopo export`.")
    if card.files.keys() != {card.model_file, STATIC_FILE}:
        raise ValueError(
            f"{folder / name} lists the files {', '.join(card.files)} instead of {card.model_file} and "
            f"{STATIC_FILE}. Export the model again with `aqtopo export`."
        )
    return card


_README = """---
library_name: aqtopo
tags:
- air-quality
- forecasting
- vision-transformer
metrics:
- rmse
---

# {name}

{description}

- Forecasts: {targets}
- Lead times: {horizons} h
- Grid: {rows} x {columns} cells, {south:g} to {north:g} degrees north, {west:g} to {east:g} degrees east
- State: {tag}

## Use

```python
import aqtopo

model = aqtopo.load("FOLDER")  # this folder
model.needs()  # the hours and channels that a start requires
forecast = model.forecast(fields)  # fields: an xarray.Dataset of these channels on the model's grid
```

## Training data

{source}

- Years of training: {train}
- Years of validation: {validation}
- Years of the test: {test}

## Scores

{scores}
"""


def readme(card: Card) -> str:
    """Return the card for people, with the metadata of Hugging Face."""
    data, config = card.data, card.config["data"]
    simulated = (
        "\n\n**The data are simulated: this model says nothing about real air.**" if data.simulated else ""
    )
    return _README.format(
        name=card.name,
        description=card.description or "Air-quality forecasts.",
        targets=", ".join(config["targets"]),
        horizons=_listed(config["horizons"]),
        rows=data.cells[0],
        columns=data.cells[1],
        south=data.lat_range[0],
        north=data.lat_range[1],
        west=data.lon_range[0],
        east=data.lon_range[1],
        tag=card.tag,
        source=data.source + simulated,
        train=_listed(data.train_years),
        validation=_listed(data.validation_years),
        test=_listed(data.test_years),
        scores=_score_table(card.scores),
    )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _score_table(scores: Mapping[str, Any] | None) -> str:
    """Return the RMSE of the model and its baselines as a table."""
    if scores is None:
        return "Not scored: `aqtopo evaluate` scores the model beside four baselines."

    def rmse(measures: Mapping[str, float | None]) -> str:
        return "-" if measures["rmse"] is None else f"{measures['rmse']:.4g}"

    pairs = scores["scores"]
    names = [name for name, value in pairs[0].items() if isinstance(value, Mapping) and "rmse" in value]
    rows = [
        ("RMSE", "lead time", *names, "units"),
        ("---",) * (len(names) + 3),
        *(
            (
                pair["pollutant"],
                f"{pair['horizon_h']} h",
                *(rmse(pair[name]) for name in names),
                pair["units"],
            )
            for pair in pairs
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Split: {scores['split']}, {_listed(scores['years'])}{scored_with(scores)}.\n\n{table}"


def scored_with(scores: Mapping[str, Any]) -> str:
    """Return the weather to come and the weights of the cells, to follow a title of scores; empty without.

    Args:
        scores: content of `scores.json`, or the attributes of its tables.
    """
    by_area = str(scores.get("weighting", "")).startswith("area")
    parts = [str(scores["weather"])] if "weather" in scores else []
    return "".join(f"; {part}" for part in [*parts, *(["cells weighted by area"] if by_area else [])])
