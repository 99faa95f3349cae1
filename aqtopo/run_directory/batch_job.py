"""Batch job of a run: the folder with the files by which slurm/job.sh and the ranks communicate.

    file     written by                                              meaning or content
    stop     the script                                              save and end; the job will be requeued
    again    rank 0, after saving because of `stop` or SIGUSR1       requeue the job
    never    a rank, after a failure that a retry cannot fix         exit code and reason
    failed   a rank, after another failure                           exit code and reason
    saved    rank 0, at each save                                    this start has made progress
    copy     rank 0, before the nodes copy the data                  the copy's folder; kept over restarts
    run      rank 0, at each save                                    the run directory; kept over restarts

Exit codes are not sufficient: launchers such as torchrun return their own.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aqtopo.refusal import Retry, file_named

JOB_DIR = "AQTOPO_JOB_DIR"
FACTS = {
    "job": "SLURM_JOB_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "nodes": "SLURM_JOB_NODELIST",
}
"""Job facts for the log and their environment variables."""


@dataclass(frozen=True)
class BatchJob:
    """Batch job of this process.

    Attributes:
        folder: the job's folder; None outside a job, where all methods are no-ops.
        facts: id, nodes and restarts of the job, if known.
    """

    folder: Path | None
    facts: dict[str, str]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the job from the environment."""
        facts = {name: environ[variable] for name, variable in FACTS.items() if variable in environ}
        return cls(Path(environ[JOB_DIR]) if JOB_DIR in environ else None, facts)

    @property
    def stop_requested(self) -> bool:
        """True if the script requests the run to save and end."""
        return self.folder is not None and (self.folder / "stop").exists()

    def has_saved_in(self, run_dir: Path | str) -> bool:
        """Return True if an earlier start of this job saved a state in a run directory."""
        if self.folder is None or not int(self.facts.get("restart_count", 0)):
            return False
        note = self.folder / "run"
        return note.is_file() and note.read_bytes() == os.fsencode(f"{Path(run_dir).resolve()}\n")

    def request_restart(self, why: str) -> None:
        """Request a requeue of the job."""
        self._write("again", why)

    def note_failure(self, retry: Retry, code: int, why: str) -> None:
        """Record a failure of this rank, unless a failure with the same reaction is recorded."""
        if self.folder is not None:
            # If the disk is full, the script has only the exit code.
            with suppress(OSError), (self.folder / retry.value).open("xb") as file:
                file.write(f"{code} {why}\n".encode(errors="backslashreplace"))  # halves of surrogates

    def note_save(self, tag: str, run_dir: Path) -> None:
        """Record a save and its run directory."""
        self._write("run", str(run_dir.resolve()))
        self._write("saved", tag)

    def note_copy(self, folder: Path) -> None:
        """Record the folder of the node-local copy; the script removes it if the run is killed."""
        self._write("copy", str(folder))

    def _write(self, name: str, text: str) -> None:
        if self.folder is not None:
            with file_named(path := self.folder / name):
                path.write_text(text + "\n", encoding="utf-8")
