"""Base class of all configuration models, and errors for valid values that contradict each other."""

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Path = tuple[str | int, ...]
"""Path of a value in the JSON document, such as ("optimizer", "groups", 0, "name")."""

CROSS_CHECK = "cross_check"
"""Error type of a valid value that contradicts another one."""


class Strict(BaseModel):
    """Frozen model with exact types that rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class Problem(NamedTuple):
    """Contradiction between two values that are valid on their own.

    Attributes:
        path: path of the value, relative to the checked model.
        value: the value at the path.
        allowed: accepted values, as the end of the message "`path` = `value`: ...".
    """

    path: Path
    value: object
    allowed: str


def raise_contradictions(title: str, problems: Iterable[Problem]) -> None:
    """Raise one `ValidationError` with all problems, if there are any."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError(CROSS_CHECK, "{allowed}", {"allowed": problem.allowed}),
            loc=problem.path,
            input=problem.value,
        )
        for problem in problems
    ]
    if details:
        raise ValidationError.from_exception_data(title, details)


def _whole(value: object) -> object:
    """Convert a float without fraction, such as 5e8, to an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


LARGEST = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly."""
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Elements = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=LARGEST)]
"""Number of array elements, often written as 5e8."""
Probability = Annotated[float, Field(ge=0, lt=1)]
# JSON has lists only; as tuples they are immutable.
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
