"""The batch job around a run: the folder through which its script, slurm/job.sh, and the ranks talk.

    stop     raised by the script: save, end, and let the job be queued again
    again    raised by rank 0, when it has saved after `stop` or SIGUSR1
    never    raised by a rank for whose failure another start would be no help: its exit code, and why
    failed   raised by a rank that failed in another way: its exit code, and why
    saved    raised by rank 0 at every save: this start has achieved something
    run      written by rank 0 at every save, and left by the script: the run directory that the job saves in

Exit codes would not do: launchers such as torchrun return their own.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aqtopo.refusal import Retry

JOB_DIR = "AQTOPO_JOB_DIR"
FACTS = {
    "job": "SLURM_JOB_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "nodes": "SLURM_JOB_NODELIST",
}
"""What the log says of the job, and the variables that say it."""


@dataclass(frozen=True)
class BatchJob:
    """The job that this process belongs to.

    Attributes:
        folder: the job's folder; None outside of such a job, where every call does nothing.
        facts: the job's id, nodes and number of restarts, as far as Slurm tells them.
    """

    folder: Path | None
    facts: dict[str, str]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The job that the environment speaks of."""
        facts = {name: environ[variable] for name, variable in FACTS.items() if variable in environ}
        return cls(Path(environ[JOB_DIR]) if JOB_DIR in environ else None, facts)

    @property
    def stop_requested(self) -> bool:
        """Whether the script wants the run to save and end."""
        return self.folder is not None and (self.folder / "stop").exists()

    def has_saved_in(self, run_dir: Path | str) -> bool:
        """Whether an earlier start of this job saved a state there."""
        if self.folder is None or not int(self.facts.get("restart_count", 0)):
            return False
        note = self.folder / "run"
        return note.is_file() and note.read_text() == f"{Path(run_dir).resolve()}\n"

    def ask_for_restart(self, why: str) -> None:
        """Have the job queued again."""
        self._write("again", why)

    def note_failure(self, retry: Retry, code: int, why: str) -> None:
        """Say whether to queue the job again, and how it ends if not; the first rank's words stand.

        Of several ranks that fail in different ways, one that says `never` decides.
        """
        if self.folder is not None:
            # A full disk, which may be the very failure, leaves it at the exit code.
            with suppress(OSError), (self.folder / retry.value).open("x") as file:
                file.write(f"{code} {why}\n")

    def note_save(self, tag: str, run_dir: Path) -> None:
        """Say that a state was saved, and where."""
        self._write("run", str(run_dir.resolve()))
        self._write("saved", tag)

    def _write(self, name: str, text: str) -> None:
        if self.folder is not None:
            (self.folder / name).write_text(text + "\n")
