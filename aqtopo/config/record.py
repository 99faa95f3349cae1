"""Reader of JSON files that aqtopo writes and that users may have edited or truncated."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, ConfigDict, ValidationError

from aqtopo.config.errors import describe
from aqtopo.config.strict import Problem, Strict, raise_contradictions

MAX_ERRORS = 3
"""Largest number of errors in a message; one missing key often repeats in all entries."""


class Record(Strict):
    """Base class of the files' contents: exact types, no NaN; unknown keys are kept."""

    model_config = ConfigDict(extra="allow")


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise_contradictions("time", [Problem((), text, "must be a time such as 2018-01-15T00")])
    return text


Time = Annotated[str, AfterValidator(_time)]
"""ISO 8601; UTC without a time zone."""

AnyRecord = TypeVar("AnyRecord", bound=Strict)


def read_record(path: Path, model: type[AnyRecord], remedy: str) -> AnyRecord:
    """Read and check a file.

    Raises:
        ValueError: the file is missing or invalid; the message has its first errors and the remedy.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing. {remedy}") from None
    except ValidationError as error:
        raise ValueError(f"{faults(error, model, str(path))}\n{remedy}") from None


def faults(error: ValidationError, model: type[Strict], place: str) -> str:
    """Return the first errors of a file or line, one per line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"{place} is not JSON ({first['ctx']['error']})."
    if not first["loc"]:
        return f"{place} does not hold one JSON object."
    lines = describe(error, model, place).splitlines()
    more = len(lines) - MAX_ERRORS
    return "\n".join([*lines[:MAX_ERRORS], *([f"and {more} more"] if more > 0 else [])])
