"""What a run logged, read as plain JSON: not by the reader under test."""

import json
from pathlib import Path
from typing import Any

from aqtopo.run_directory.log_file import METRICS_FILE


def events(run_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    """The events of these kinds in their order, without one that is being written; none without a file."""
    path = run_dir / METRICS_FILE
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    return [event for line in whole if (event := json.loads(line))["event"] in kinds]
