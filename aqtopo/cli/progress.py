"""Progress of a command on stderr: a bar on a terminal, otherwise plain lines."""

import sys
import time
from typing import Any

from tqdm import tqdm

PLAIN_LINE_EVERY_S = 5.0


class ProgressBar:
    """Progress of one count after another, with rate and time left."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._bar: tqdm[Any] | None = None
        self._first, self._started, self._last_line = 0, 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; a new `what` begins a new count."""
        if what != self._what:
            self._begin(what, done, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar is None and (now - self._last_line >= PLAIN_LINE_EVERY_S or done == total):
            self._last_line = now
            print(f"{done}/{total} {what}{self._pace(done, total, now)}", file=sys.stderr, flush=True)  # noqa: T201
        if self._bar is not None and done == total:
            self._bar.close()

    def _pace(self, done: int, total: int, now: float) -> str:
        """Return rate and time left; empty before the second update."""
        counted, seconds = done - self._first, now - self._started
        if not counted or not seconds:
            return ""
        left = tqdm.format_interval((total - done) * seconds / counted)
        return f", {counted / seconds:.1f}/s, {left} left"

    def _begin(self, what: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.close()
        now = time.monotonic()
        self._what, self._first, self._started, self._last_line = what, done, now, now
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=what, unit="", file=sys.stderr, dynamic_ncols=True
            )
