"""Reading a run's configuration from its JSON file."""

import json
from collections.abc import Iterable
from pathlib import Path

from aqtopo.config.run import RunConfig


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:  # noqa: ARG001
    """Read and check the configuration at `path`."""
    return RunConfig.model_validate(json.loads(Path(path).read_text()))
