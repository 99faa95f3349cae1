"""Saved states of a run: names, listing, the pointer to the last one, and removal.

checkpoints/<tag>/            a saved state, committed by renaming it from <tag>.tmp
checkpoints/<tag>.universal/  the same state by parameter name, for a resume at any world size
checkpoints/latest            name of the state committed last
checkpoints/history           names of all states ever committed; they are never reused

`--resume auto` takes the committed state with the highest number. `latest` is updated after the rename, so
after a kill it may be one state behind; a `latest` with any other content is refused.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from aqtopo.checkpoint.files import (
    append_checksum,
    exclusive_lock,
    remove_checksum,
    shared_lock,
    write_durably,
)
from aqtopo.config import CheckpointConfig
from aqtopo.refusal import RefusedError
from aqtopo.safe_files import UNFINISHED, remove, replacing, temporary_path

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"
POINTER = "latest"
HISTORY = "history"
DISCARDED = ".discarded"
UNIVERSAL = ".universal"
VAL_LOSS = re.compile(r"-val([0-9.]+|nan|inf)(?:-take\d+)?$")
NAME_PATTERN = re.compile(r"epoch\d{2,}-step\d{6,}(-val([0-9.]+|nan|inf))?(-take\d+)?")
STALE = re.compile(
    rf"({NAME_PATTERN.pattern})({re.escape(UNIVERSAL)})?(\.[0-9a-f]{{8}})?({UNFINISHED}|{DISCARDED})"
    rf"|({POINTER}|{HISTORY})\.[0-9a-f]{{8}}{UNFINISHED}"
)
"""Names of what a killed process may leave; `checkpoints` may also hold files of others, which stay."""


@dataclass(frozen=True)
class Tag:
    """One saved state.

    Attributes:
        epoch: number of the current epoch, from 0.
        step: optimizer updates made.
        step_in_epoch: updates made in the current epoch.
        val_loss: validation loss of this state, or None if it was not validated.
        train_loss: training loss of the last step.
        take: 1; higher if the run resumed from an earlier state and reached the same step again.
        number: position among the run's states in the order of saving, from 1.
        data: number of the data of `val_loss`, from 0; each resume on other data raises it. Validation losses
            of different data are not compared.
    """

    epoch: int
    step: int
    step_in_epoch: int
    val_loss: float | None
    train_loss: float
    take: int = 1
    number: int = 0
    data: int = 0

    @property
    def name(self) -> str:
        """Name of the folder, such as `epoch03-step000311-val0.3557`."""
        validated = "" if self.val_loss is None else f"-val{self.val_loss:.4f}"
        again = "" if self.take == 1 else f"-take{self.take}"
        return f"epoch{self.epoch:02d}-step{self.step:06d}{validated}{again}"

    def folder(self, run_dir: Path) -> Path:
        """Return the folder of this state in a run directory."""
        return run_dir / CHECKPOINTS / self.name


_TAG = TypeAdapter(Tag)


def val_loss_in(name: str) -> float | None:
    """Return the validation loss in a tag's name, with its four digits; None if it has none."""
    match = VAL_LOSS.search(name)
    return float(match[1]) if match else None


def write_tag(tag: Tag, run_dir: Path, folder: Path | None = None) -> None:
    """Write `state.json` beside the shards; a folder without it is not a saved state."""
    target = (folder or tag.folder(run_dir)) / STATE_FILE
    with replacing(target) as temporary:
        temporary.write_text(append_checksum(json.dumps(asdict(tag), indent=1)), encoding="utf-8")


def read_tag(path: Path) -> Tag:
    """Read a `state.json`.

    Raises:
        ValueError: it is damaged, or describes another folder than its own.
    """
    try:
        tag = _TAG.validate_json(remove_checksum(path.read_bytes().decode()), strict=True)
        name = tag.name
    except ValueError as error:
        raise ValueError(
            f"{path} does not describe a saved state ({error}). Remove {path.parent} or restore the file."
        ) from error
    if name != path.parent.name:
        raise ValueError(f"{path} describes {name}, but is in {path.parent.name}. Move the folder away.")
    return tag


def list_tags(run_dir: Path) -> list[Tag]:
    """Return the saved states of a run in the order in which they were saved.

    Unfinished and discarded folders are left out. A folder whose `state.json` is damaged or describes
    another folder is skipped with a warning.
    """
    found = []
    for path in sorted((run_dir / CHECKPOINTS).glob(f"*/{STATE_FILE}")):
        if path.parent.name.endswith((UNFINISHED, DISCARDED, UNIVERSAL)):
            continue
        try:
            found.append(read_tag(path))
        except FileNotFoundError:
            continue  # pruned since it was listed
        except ValueError as error:
            warnings.warn(f"a saved state is skipped: {error}", stacklevel=2)
    return sorted(found, key=lambda tag: (tag.number, tag.step, tag.take))


def best_tag(run_dir: Path) -> Tag | None:
    """Return the state with the lowest validation loss on the data of the last validation, or None."""
    validated = [tag for tag in list_tags(run_dir) if tag.val_loss is not None]
    return next(iter(_best_first(tag for tag in validated if tag.data == validated[-1].data)), None)


def last_tag(run_dir: Path) -> Tag | None:
    """Return the state saved last, or None."""
    return next(reversed(list_tags(run_dir)), None)


def how_to_continue(run_dir: Path) -> str:
    """Return the last complete state and the remedy, for the message of a run that could not write."""
    last = last_tag(run_dir)
    if last is None:
        return "No state is saved yet. Remove the cause and repeat the command."
    return (
        f"The last complete state is {last.name}. Remove the cause and repeat the command: "
        "it resumes from that state."
    )


def find_tag(run_dir: Path, name: str) -> Tag:
    """Return the state called `name`, or the `best` or `last` one.

    Raises:
        ValueError: there is no such state; the message lists the existing ones.
    """
    known = {tag.name: tag for tag in list_tags(run_dir)}
    shorthands = {"best": best_tag(run_dir), "last": last_tag(run_dir)}
    known |= {word: tag for word, tag in shorthands.items() if tag is not None}
    if name not in known:
        none = "none: train it first with `aqtopo train`"
        if any((run_dir / CHECKPOINTS).glob(f"*/{STATE_FILE}")):
            none = f"none with a readable {STATE_FILE}: see `aqtopo checkpoint ls {run_dir}`"
        raise ValueError(f"{run_dir} has no saved state {name!r}; it has {', '.join(known) or none}.")
    return known[name]


def next_tag(tag: Tag, run_dir: Path) -> Tag:
    """Return the tag with its number and with a name that no state of the run ever had."""
    used = set(_history(run_dir).split())
    while tag.name in used or tag.folder(run_dir).exists():
        tag = replace(tag, take=tag.take + 1)
    return replace(tag, number=1 + max((known.number for known in list_tags(run_dir)), default=0))


def record_name(tag: Tag, run_dir: Path) -> None:
    """Add a name to the history of used names, before the rename."""
    write_durably(run_dir / CHECKPOINTS / HISTORY, f"{_history(run_dir)}{tag.name}\n")


def _history(run_dir: Path) -> str:
    history = run_dir / CHECKPOINTS / HISTORY
    return history.read_bytes().decode(errors="replace") if history.is_file() else ""


def _read_pointer(run_dir: Path) -> str | None:
    """Return the name in the pointer; None if there is no pointer."""
    pointer = run_dir / CHECKPOINTS / POINTER
    if not pointer.is_file():
        return None
    text = pointer.read_bytes().decode(errors="replace")
    return text[:-1] if text.endswith("\n") else text + "<no end of line>"


def check_pointer(run_dir: Path) -> None:
    """Check that the pointer, if it exists, names one of the two states saved last.

    Raises:
        RefusedError: it names another one, so the last saved state is lost or unknown.
    """
    named, tags = _read_pointer(run_dir), list_tags(run_dir)
    if named is None or named in [tag.name for tag in tags[-2:]]:
        return
    known = [tag.name for tag in tags]
    fault = "is not the state saved last" if named in known else "is not a complete saved state"
    raise RefusedError(
        f"{run_dir / CHECKPOINTS / POINTER} names {named!r}, which {fault}. "
        f"Name the state to resume from: --resume {' or --resume '.join(known) or 'PATH'}"
    )


def update_pointer(tag: Tag, run_dir: Path) -> None:
    """Make the pointer name `tag`."""
    write_durably(run_dir / CHECKPOINTS / POINTER, f"{tag.name}\n")


def repair_pointer(run_dir: Path) -> None:
    """Make the pointer name the last state; a process killed after a rename leaves it one state behind."""
    last = last_tag(run_dir)
    if last is not None and _read_pointer(run_dir) != last.name:
        update_pointer(last, run_dir)


def _best_first(tags: Iterable[Tag]) -> list[Tag]:
    """Return the validated states, the one with the lowest loss first."""
    validated = [tag for tag in tags if tag.val_loss is not None]
    return sorted(validated, key=lambda tag: (tag.val_loss or 0.0, tag.step))


def kept_tags(tags: Sequence[Tag], policy: CheckpointConfig) -> set[Tag]:
    """Return the states that are kept: the last, the best on each of its data, and the periodic ones."""
    every = policy.keep_every_steps
    kept = {tag for tag in tags if every is not None and tag.step % every == 0}
    for data in {tag.data for tag in tags}:
        kept |= {*_best_first(tag for tag in tags if tag.data == data)[: policy.keep_best]}
    return {*kept, *tags[-1:]}


def prune(run_dir: Path, policy: CheckpointConfig) -> None:
    """Remove all states that the policy does not keep.

    A state that cannot be removed is kept with a warning; the next pruning tries again.
    """
    tags = list_tags(run_dir)
    kept = {tag.name for tag in kept_tags(tags, policy)} | {_read_pointer(run_dir)}
    for tag in tags:
        if tag.name not in kept:
            try:
                _remove_if_unread(tag.folder(run_dir))
            except OSError as error:
                warnings.warn(f"{tag.name} cannot be removed: {error}", stacklevel=2)


def remove_stale(run_dir: Path) -> None:
    """Remove unfinished and partly removed folders of killed processes; no link is followed."""
    for path in (run_dir / CHECKPOINTS).glob("*"):
        tag = path.name.removesuffix(UNIVERSAL)
        orphan = path.name != tag and NAME_PATTERN.fullmatch(tag) and not path.with_name(tag).exists()
        if orphan or STALE.fullmatch(path.name):
            remove(path)


def read_lock(folder: Path) -> AbstractContextManager[None]:
    """Return a lock that keeps a saved state, of either layout, from being pruned.

    It is a no-op for a folder without `state.json`, because no run prunes such a folder.
    """
    owner = folder.parent.with_name(folder.name) if folder.parent.name == folder.name + UNIVERSAL else folder
    path = owner / STATE_FILE
    return shared_lock(path) if path.is_file() else nullcontext()


def remove_folder(folder: Path) -> None:
    """Remove a folder: rename it first, so that a killed process leaves no incomplete state."""
    discarded = temporary_path(folder, DISCARDED)
    folder.rename(discarded)
    remove(discarded)


def _remove_if_unread(folder: Path) -> None:
    """Remove a state and its universal form, unless another process holds a read lock."""
    with exclusive_lock(folder / STATE_FILE) as held:
        if held:
            remove_folder(folder)
            shutil.rmtree(folder.with_name(folder.name + UNIVERSAL), ignore_errors=True)
