"""Card of an exported model.

OUT/card.json            provenance, scores, normalisation, hashes of the other files
OUT/weights.safetensors  every weight by name in fp32, as `aqtopo evaluate` uses them
OUT/static.safetensors   static fields and coordinates of the grid
"""

from pathlib import Path
from typing import Any, Literal

from aqtopo.checkpoint.files import FileRecord
from aqtopo.checkpoint.tags import Tag
from aqtopo.config.record import read_record
from aqtopo.config.strict import Strict
from aqtopo.variables import Variable

CARD_FILE = "card.json"
STATIC_FILE = "static.safetensors"


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
    std: dict[str, float]


class Card(Strict):
    """Content of `card.json`."""

    format_version: Literal[1] = 1
    name: str
    description: str
    exported: str
    state: Tag
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
    """Content of `run.json`: machine, versions and commit."""
    exported_with: dict[str, str | None]
    files: dict[str, FileRecord]


def is_export(path: Path) -> bool:
    """Return True if a folder is an exported model."""
    return (path / CARD_FILE).is_file()


def read_card(folder: Path) -> Card:
    """Read the card of an exported model.

    Raises:
        ValueError: it is missing, damaged or of another version.
    """
    return read_record(folder / CARD_FILE, Card, "Export the model again with `aqtopo export`.")
