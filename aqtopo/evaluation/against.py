"""Forecasts of another model, read with the reader for files from outside."""

import re
from collections.abc import Sequence
from pathlib import Path

from aqtopo.data.forecasts import OtherForecasts, open_forecasts
from aqtopo.data.store import Store
from aqtopo.evaluation.points import FORECASTS


def open_model(
    paths: Path | Sequence[Path], store: Store, pollutants: Sequence[str], horizons_h: Sequence[int]
) -> OtherForecasts:
    """Open another model's forecasts, as `open_forecasts`, whose name is a label of the scores.

    Raises:
        ValueError: as `open_forecasts`, or the name cannot be a label.
    """
    forecasts = open_forecasts(paths, store, pollutants, horizons_h)
    if not re.fullmatch(r"[\w.-]+", forecasts.name) or forecasts.name in FORECASTS:
        raise ValueError(
            f"the file name {forecasts.name} cannot be used as a label of scores. Use letters, digits, dots, "
            f"underscores and hyphens, and none of {', '.join(FORECASTS)}."
        )
    return forecasts
