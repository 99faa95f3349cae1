"""What every configuration model shares: frozen, exact types, no unknown keys, errors with their path."""

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Path = tuple[str | int, ...]
"""The place of a value in the JSON document: ("optimizer", "groups", 0, "name")."""

CROSS_CHECK = "cross_check"
"""Error type of a value that is fine by itself and contradicts another one."""


class Strict(BaseModel):
    """Base of every model: frozen, unknown keys refused, neither "2" nor 2.0 is 2, no NaN, no infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class Problem(NamedTuple):
    """One contradiction between values that are each fine by themselves.

    Attributes:
        path: where the value stands, relative to the model that found the contradiction.
        value: the value that should change.
        allowed: what would be accepted, as the end of the sentence "`path` = `value`: ...".
    """

    path: Path
    value: object
    allowed: str


def refuse(title: str, problems: Iterable[Problem]) -> None:
    """Raise one `ValidationError` holding all `problems`; do nothing if there are none."""
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
    """Read 5e8, which JSON calls a float, as the whole number that its author meant."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Elements = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
"""A count of array elements, which DeepSpeed's users write as 5e8."""
Probability = Annotated[float, Field(ge=0, lt=1)]
# JSON knows lists only; they become tuples, so that a frozen model is frozen all the way down.
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
