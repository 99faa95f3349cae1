"""Tags: the saved states of a run, each a folder that appears under its name only when it is complete.

checkpoints/<tag>/            a saved state, committed by renaming it from <tag>.tmp
checkpoints/<tag>.universal/  the same state by parameter name, made for resuming at any world size
checkpoints/latest            the state committed last, for people and programs
checkpoints/history           the names of all states ever committed, which are never used again

`--resume auto` goes on from the committed state with the highest number. `latest` is written after a state
has its name, so that a process killed in between leaves it one state behind; anything else that it may say
is refused.
"""

import json
import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aqtopo.checkpoint.files import seal, unseal, write_durably
from aqtopo.refusal import RefusedError

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"
POINTER = "latest"
HISTORY = "history"
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
        number: which of the run's states it is, in the order in which they were saved, from 1.
    """

    epoch: int
    step: int
    step_in_epoch: int
    val_loss: float | None
    train_loss: float
    take: int = 1
    number: int = 0

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
    aside.write_text(seal(json.dumps(asdict(tag), indent=1)))
    aside.replace(target)


def list_tags(run_dir: Path) -> list[Tag]:
    """The saved states of a run in the order in which they were saved.

    What a killed process left half done is none. A folder whose description is damaged or that of another one
    is none either, which is said aloud: it must not stand in the way of the others.
    """
    found = []
    for path in sorted((run_dir / CHECKPOINTS).glob(f"*/{STATE_FILE}")):
        if path.parent.name.endswith((UNFINISHED, DISCARDED, UNIVERSAL)):
            continue
        try:
            found.append(read_state(path))
        except FileNotFoundError:
            continue  # pruned since it was listed
        except ValueError as error:
            warnings.warn(f"not counted among the saved states: {error}", stacklevel=2)
    return sorted(found, key=lambda tag: (tag.number, tag.step, tag.take))


def read_state(path: Path) -> Tag:
    """What `write_state` wrote.

    Raises:
        ValueError: it is not that, or describes another folder than its own.
    """
    try:
        tag = Tag(**json.loads(unseal(path.read_bytes().decode())))
        name = tag.name
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe a saved state ({error}). Remove {path.parent} or restore the file."
        ) from error
    if name != path.parent.name:
        raise ValueError(f"{path} describes {name}, but lies in {path.parent.name}. Move the folder away.")
    return tag


def next_tag(tag: Tag, run_dir: Path) -> Tag:
    """A tag with its number, and under a name that no state of the run ever had."""
    used = set(_history(run_dir).split())
    while tag.name in used or tag.folder(run_dir).exists():
        tag = replace(tag, take=tag.take + 1)
    return replace(tag, number=1 + max((known.number for known in list_tags(run_dir)), default=0))


def note_name(tag: Tag, run_dir: Path) -> None:
    """Enter a name, before it is given, among those that are used."""
    write_durably(run_dir / CHECKPOINTS / HISTORY, f"{_history(run_dir)}{tag.name}\n")


def _history(run_dir: Path) -> str:
    history = run_dir / CHECKPOINTS / HISTORY
    return history.read_bytes().decode(errors="replace") if history.is_file() else ""


def best_tag(run_dir: Path) -> Tag | None:
    """The state with the lowest validation loss, or None."""
    validated = [tag for tag in list_tags(run_dir) if tag.val_loss is not None]
    return min(validated, key=lambda tag: (tag.val_loss, tag.step), default=None)


def last_tag(run_dir: Path) -> Tag | None:
    """The state saved last, or None."""
    return next(reversed(list_tags(run_dir)), None)


def pointed_name(run_dir: Path) -> str | None:
    """The name in the pointer; None where there is no pointer."""
    pointer = run_dir / CHECKPOINTS / POINTER
    if not pointer.is_file():
        return None
    text = pointer.read_bytes().decode(errors="replace")
    return text[:-1] if text.endswith("\n") else text + "<no end of line>"


def check_pointer(run_dir: Path) -> None:
    """Make sure that the pointer, if there is one, names the state saved last or the one before that.

    Raises:
        RefusedError: it does not, so that the state saved last is lost or not known.
    """
    named, tags = pointed_name(run_dir), list_tags(run_dir)
    if named is None or named in [tag.name for tag in tags[-2:]]:
        return
    known = [tag.name for tag in tags]
    what = "is not the state saved last" if named in known else "is not a complete saved state"
    raise RefusedError(
        f"{run_dir / CHECKPOINTS / POINTER} names {named!r}, which {what}. "
        f"Say from which to go on: --resume {' or --resume '.join(known) or 'PATH'}"
    )


def point_to(tag: Tag, run_dir: Path) -> None:
    """Say that `tag` is the state saved last."""
    write_durably(run_dir / CHECKPOINTS / POINTER, f"{tag.name}\n")


def mend_pointer(run_dir: Path) -> None:
    """Bring the pointer up to date where a process was killed before it did, lest it fall two behind."""
    last = last_tag(run_dir)
    if last is not None and pointed_name(run_dir) != last.name:
        point_to(last, run_dir)


def find_tag(run_dir: Path, name: str) -> Tag:
    """The state called `name`, or the `best` or `last` one.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = {tag.name: tag for tag in list_tags(run_dir)}
    shorthands = {"best": best_tag(run_dir), "last": last_tag(run_dir)}
    known |= {word: tag for word, tag in shorthands.items() if tag is not None}
    if name not in known:
        unread = any((run_dir / CHECKPOINTS).glob(f"*/{STATE_FILE}"))
        none = (
            f"none whose {STATE_FILE} can be relied on: see `aqtopo checkpoint ls {run_dir}`"
            if unread
            else "none: train it first with `aqtopo train`"
        )
        raise ValueError(f"{run_dir} has no saved state {name!r}; it has {', '.join(known) or none}.")
    return known[name]
