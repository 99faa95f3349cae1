"""JSON files that aqtopo writes and reads again, and that people may have edited or cut short in between."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, ConfigDict, ValidationError

from aqtopo.config.errors import describe
from aqtopo.config.strict import Problem, Strict, refuse

MOST_FAULTS = 3
"""Faults that a message names: a key that is lost in one entry is often lost in all."""


class Record(Strict):
    """Base of what such a file holds: exact types, no NaN; keys that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        refuse("time", [Problem((), text, "must be a time such as 2018-01-15T00")])
    return text


Time = Annotated[str, AfterValidator(_time)]
"""ISO 8601; UTC where it names no zone."""

AnyRecord = TypeVar("AnyRecord", bound=Strict)


def read_record(path: Path, model: type[AnyRecord], remedy: str) -> AnyRecord:
    """Read and check a file.

    Args:
        path: the file.
        model: what it must hold.
        remedy: what to do where it does not, as whole sentences.

    Raises:
        ValueError: there is no such file, or it is not what `model` says: its first faults, then the remedy.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing. {remedy}") from None
    except ValidationError as error:
        raise ValueError(f"{faults(error, model, str(path))}\n{remedy}") from None


def faults(error: ValidationError, model: type[Strict], place: str) -> str:
    """The first faults of what stands at a place, such as a file, a line each."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"{place} is not JSON ({first['ctx']['error']})."
    if not first["loc"]:
        return f"{place} does not hold one JSON object."
    lines = describe(error, model, place).splitlines()
    more = len(lines) - MOST_FAULTS
    return "\n".join([*lines[:MOST_FAULTS], *([f"and {more} more"] if more > 0 else [])])
