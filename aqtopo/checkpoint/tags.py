"""Tags: the saved states of a run, each a folder that appears under its name only when it is complete.

checkpoints/<tag>/            a saved state, committed by renaming it from <tag>.tmp
checkpoints/<tag>.universal/  the same state by parameter name, made for resuming at any world size
checkpoints/latest            the tag from which `--resume auto` goes on
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from aqtopo.checkpoint.files import write_durably
from aqtopo.refusal import RefusedError

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"
POINTER = "latest"
UNFINISHED = ".tmp"
DISCARDED = ".discarded"
UNIVERSAL = ".universal"
VAL_LOSS = re.compile(r"-val([0-9.]+|nan|inf)(?:-take\d+)?$")
NAME_PATTERN = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Tag:
    """One saved state.

    Attributes:
        epoch: epochs begun before this state, counted from 0.
        step: optimizer updates made.
        step_in_epoch: of these, those of the current epoch.
        val_loss: validation loss of this very state, or None where it was not validated.
        train_loss: training loss of the last step.
        take: 1, or more where the run went back and came to the same step again: names are never reused.
    """

    epoch: int
    step: int
    step_in_epoch: int
    val_loss: float | None
    train_loss: float
    take: int = 1

    @property
    def name(self) -> str:
        """The folder's name, such as `epoch03-step000311-val0.3557`."""
        validated = "" if self.val_loss is None else f"-val{self.val_loss:.4f}"
        again = "" if self.take == 1 else f"-take{self.take}"
        return f"epoch{self.epoch:02d}-step{self.step:06d}{validated}{again}"

    def folder(self, run_dir: Path) -> Path:
        """Where this state lies in a run directory."""
        return run_dir / CHECKPOINTS / self.name


def val_loss_in(name: str) -> float | None:
    """The validation loss in a tag's name, with its four digits; None where there is none."""
    match = VAL_LOSS.search(name)
    return float(match[1]) if match else None


def write_state(tag: Tag, run_dir: Path, folder: Path | None = None) -> None:
    """Describe a saved state beside its shards; a folder without this file is not a tag."""
    target = (folder or tag.folder(run_dir)) / STATE_FILE
    aside = target.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(tag), indent=2) + "\n")
    aside.replace(target)


def list_tags(run_dir: Path) -> list[Tag]:
    """The saved states of a run, oldest first; what a killed process left half done is none."""
    states = (
        path
        for path in (run_dir / CHECKPOINTS).glob(f"*/{STATE_FILE}")
        if not path.parent.name.endswith((UNFINISHED, DISCARDED, UNIVERSAL))
    )
    return sorted((read_state(path) for path in states), key=lambda tag: (tag.step, tag.take))


def read_state(path: Path) -> Tag:
    """What `write_state` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        return Tag(**json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe a saved state ({error}). Remove {path.parent} or restore the file."
        ) from error


def best_tag(run_dir: Path) -> Tag | None:
    """The state with the lowest validation loss, or None."""
    validated = [tag for tag in list_tags(run_dir) if tag.val_loss is not None]
    return min(validated, key=lambda tag: (tag.val_loss, tag.step), default=None)


def last_tag(run_dir: Path) -> Tag | None:
    """The state saved last: the one the pointer names, else the one with the most steps; or None."""
    tags = list_tags(run_dir)
    pointer = run_dir / CHECKPOINTS / POINTER
    pointed = pointer.read_bytes().decode(errors="replace").strip() if pointer.is_file() else ""
    named = [tag for tag in tags if tag.name == pointed]
    return next(reversed(named or tags), None)


def check_pointer(run_dir: Path) -> None:
    """Make sure that the pointer, if there is one, names a saved state.

    Raises:
        RefusedError: it does not, so that the state saved last is not known.
    """
    pointer = run_dir / CHECKPOINTS / POINTER
    if not pointer.is_file():
        return
    named = pointer.read_bytes().decode(errors="replace").strip()
    known = [tag.name for tag in list_tags(run_dir)]
    if named not in known:
        raise RefusedError(
            f"{pointer} names {named!r}, which is not a complete saved state. "
            f"Say from which to go on: --resume {' or --resume '.join(known) or 'PATH'}"
        )


def point_to(tag: Tag, run_dir: Path) -> None:
    """Make `tag` the one from which the run goes on."""
    write_durably(run_dir / CHECKPOINTS / POINTER, f"{tag.name}\n")


def find_tag(run_dir: Path, name: str) -> Tag:
    """The state called `name`, or the `best` or `last` one.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = {tag.name: tag for tag in list_tags(run_dir)}
    shorthands = {"best": best_tag(run_dir), "last": last_tag(run_dir)}
    known |= {word: tag for word, tag in shorthands.items() if tag is not None}
    if name not in known:
        raise ValueError(
            f"{run_dir} has no saved state {name!r}; it has "
            f"{', '.join(known) or 'none: train it first with `aqtopo train`'}."
        )
    return known[name]
