"""Reader of a run's log as plain JSON, independent of the reader under test."""

import json
from pathlib import Path
from typing import Any

from aqtopo.run_directory.log_file import METRICS_FILE


def events(run_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return the events of these kinds in order, without an incomplete last line; none without a file."""
    path = run_dir / METRICS_FILE
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if path.is_file() else []
    return [event for line in whole if (event := json.loads(line))["event"] in kinds]
