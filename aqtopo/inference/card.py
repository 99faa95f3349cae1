"""A trained model to hand on: a folder with weights, the terrain it needs, and a card that says what it is.

OUT/card.json            what it was trained on and with, how it scores, its normalisation, hashes of the rest
OUT/weights.safetensors  every weight by name in fp32, those that `aqtopo evaluate` scores
OUT/static.safetensors   the static fields and coordinates of the grid

Nothing in it is a pickle, and reading it needs no DeepSpeed.
"""

from pathlib import Path
from typing import Any, Literal

from aqtopo.checkpoint.files import FileRecord
from aqtopo.checkpoint.tags import Tag
from aqtopo.config.record import read_record
from aqtopo.config.strict import Strict

CARD_FILE = "card.json"
STATIC_FILE = "static.safetensors"
GRID_TOLERANCE_DEG = 1e-4


class DataFacts(Strict):
    """What the model was trained on."""

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
    """What inputs are normalised with, by variable, in its units."""

    kind: str
    statistics_years: tuple[int, ...]
    mean: dict[str, float]
    std: dict[str, float]


class Card(Strict):
    """What `card.json` holds."""

    format_version: Literal[1] = 1
    name: str
    description: str
    exported: str
    state: Tag
    tag: str
    data: DataFacts
    normalization: NormalizationFacts
    scores: dict[str, Any] | None
    """What `scores.json` says of this very state, without its strata; None where it was not evaluated."""
    config: dict[str, Any]
    config_digest: str
    trained_with: dict[str, Any]
    """What `run.json` says of the machine, the versions and the commit."""
    exported_with: dict[str, str | None]
    files: dict[str, FileRecord]


def is_export(path: Path) -> bool:
    """Whether a folder is what `export_model` writes."""
    return (path / CARD_FILE).is_file()


def read_card(folder: Path) -> Card:
    """The card of an exported model.

    Raises:
        ValueError: it is missing or not one that this version wrote.
    """
    return read_record(folder / CARD_FILE, Card, "Export the model again with `aqtopo export`.")
