"""Tags: the saved states of a run, each a folder with DeepSpeed's shards, the weights and a description."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Tag:
    """One saved state.

    Attributes:
        epoch: epochs begun before this state, counted from 0.
        step: optimizer updates made.
        step_in_epoch: of these, those of the current epoch.
        val_loss: validation loss of this very state, or None where it was not validated.
        train_loss: training loss of the last step.
    """

    epoch: int
    step: int
    step_in_epoch: int
    val_loss: float | None
    train_loss: float

    @property
    def name(self) -> str:
        """The folder's name, such as `epoch03-step000311-val0.3557`."""
        suffix = "" if self.val_loss is None else f"-val{self.val_loss:.4f}"
        return f"epoch{self.epoch:02d}-step{self.step:06d}{suffix}"

    def folder(self, run_dir: Path) -> Path:
        """Where this state lies in a run directory."""
        return run_dir / CHECKPOINTS / self.name


def write_state(tag: Tag, run_dir: Path) -> None:
    """Describe a saved state beside its shards; a folder without this file is not a tag."""
    target = tag.folder(run_dir) / STATE_FILE
    aside = target.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(tag), indent=2) + "\n")
    aside.replace(target)


def list_tags(run_dir: Path) -> list[Tag]:
    """The saved states of a run, oldest first."""
    states = (run_dir / CHECKPOINTS).glob(f"*/{STATE_FILE}")
    return sorted((_read_state(path) for path in states), key=lambda tag: tag.step)


def _read_state(path: Path) -> Tag:
    try:
        return Tag(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe a saved state ({error}). Remove {path.parent} or restore the file."
        ) from error


def best_tag(run_dir: Path) -> Tag | None:
    """The state with the lowest validation loss, or None."""
    validated = [tag for tag in list_tags(run_dir) if tag.val_loss is not None]
    return min(validated, key=lambda tag: (tag.val_loss, tag.step), default=None)


def last_tag(run_dir: Path) -> Tag | None:
    """The state with the most steps, or None."""
    return max(list_tags(run_dir), key=lambda tag: tag.step, default=None)


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
