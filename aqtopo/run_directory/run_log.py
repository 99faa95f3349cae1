"""Log of a run: events in metrics.jsonl and its monitors; a progress bar on a terminal, otherwise lines."""

import json
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from aqtopo.refusal import file_named
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.monitors import Monitors
from aqtopo.safe_files import open_plain

PLAIN_LINE_EVERY_S = 5.0


class RunLog:
    """Log on rank 0; a no-op on other ranks, where `run_dir` is None."""

    def __init__(self, run_dir: Path | None, total_steps: int) -> None:
        self._path = None if run_dir is None else run_dir / METRICS_FILE
        self._total = total_steps
        self._first: tuple[int, float] | None = None
        self._last_line = float("-inf")
        self.monitors: Monitors | None = None
        silent = self._path is None or not sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, unit="step", disable=silent, file=sys.stderr, dynamic_ncols=True)

    def event(self, event: str, **facts: Any) -> None:
        """Append an event to `metrics.jsonl`; send its numbers to the monitors if it has a step."""
        if self._path is None:
            return
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        with file_named(self._path), open_plain(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": stamp, **facts}, allow_nan=False) + "\n")
        if self.monitors is not None and "step" in facts:
            self.monitors.write(facts)

    def say(self, text: str) -> None:
        """Print a line on the console."""
        if self._path is not None:
            tqdm.write(text, file=sys.stderr)

    def progress(self, step: int, text: str) -> None:
        """Show the step, the pace since the first call and the time left."""
        if self._path is None:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
            self._bar.reset(self._total)
            self._bar.initial = self._bar.n = step
        self._bar.set_description(text, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and (now - self._last_line >= PLAIN_LINE_EVERY_S or step == self._total):
            self._last_line = now
            self.say(f"step {step}/{self._total}  {text}{self._pace(step, now)}")

    def _pace(self, step: int, now: float) -> str:
        """Return pace and time left; empty before the second step."""
        assert self._first is not None
        steps, seconds = step - self._first[0], now - self._first[1]
        if not steps:
            return ""
        left = tqdm.format_interval((self._total - step) * seconds / steps)
        return f"  {steps / seconds:.2f} steps/s, {left} left"

    def close(self) -> None:
        """Close the progress bar and the monitors; they note a run that ends with an exception."""
        self._bar.close()
        if self.monitors is not None:
            self.monitors.close(failed=sys.exc_info()[0] is not None)


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory [GiB]: of the allocator on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux reports KiB
