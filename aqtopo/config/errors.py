"""Error messages of a configuration: `file: path = value: what is allowed`, one line per error."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aqtopo.config.paths import fields_of, model_at, spell, suggestion
from aqtopo.config.refused import reason_against
from aqtopo.config.strict import CROSS_CHECK, Path, Strict

_LONGEST_VALUE = 60

_ALLOWED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "greater_than": "must be greater than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be at most {le:.16g}",
    "multiple_of": "must be a multiple of {multiple_of:.15g}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must hold at least {min_length} item",
    "too_long": "must hold at most {max_length} items",
    CROSS_CHECK: "{allowed}",
}
"""Text about the accepted values by pydantic's error type, formatted with the error's context."""


class Override(NamedTuple):
    """One `--set path=value`: the text as typed, the path and the new value."""

    text: str
    path: Path
    value: object

    def sets(self, path: Path) -> bool:
        """Return True if this override sets the value at `path`."""
        return path[: len(self.path)] == self.path


def describe(
    error: ValidationError, root: type[Strict], file: str, overrides: Sequence[Override] = ()
) -> str:
    """Return one line per error, in the order of the fields of the validated model `root`."""
    lines = []
    for detail in error.errors(include_url=False):
        if _is_echo(detail):
            continue
        path = detail["loc"]
        origin = _origin(file, path, overrides, everywhere=detail["type"] == CROSS_CHECK)
        lines.append(f"{origin}: {spell(path)}{_value(detail)}: {_allowed(detail, root)}")
    return "\n".join(lines)


def _origin(file: str, path: Path, overrides: Sequence[Override], *, everywhere: bool) -> str:
    """Return the file and the override that set the value; for a contradiction, all overrides."""
    applied = [override for override in overrides if override.sets(path)] or (overrides if everywhere else [])
    return file + "".join(f" with --set {override.text}" for override in applied)


def _value(detail: ErrorDetails) -> str:
    """Return ` = value`, abbreviated; empty for a missing value."""
    if detail["type"] == "missing":
        return ""
    text = json.dumps(detail["input"], default=str)
    return f" = {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'}"


def _is_echo(detail: ErrorDetails) -> bool:
    """Return True if a list is too short only because pydantic drops invalid items, which have own errors."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _allowed(detail: ErrorDetails, root: type[Strict]) -> str:
    path, meaning = detail["loc"], _description(root, detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            return unknown_key(path, root)
        case "missing":
            return f"missing, and required{f' ({meaning})' if meaning else ''}"
        case "string_pattern_mismatch":
            return f"must match {detail['ctx']['pattern']}{f' ({meaning})' if meaning else ''}"
        case "literal_error" if meaning.startswith("must be "):
            return meaning
        case "literal_error":
            expected: str = detail["ctx"]["expected"]
            return "must be " + expected.replace("'", '"').replace("False", "false")
        case kind if kind in _ALLOWED:
            return _ALLOWED[kind].format(**detail.get("ctx", {}))
    return lower_first(detail["msg"])


def unknown_key(path: Path, root: type[Strict]) -> str:
    """Explain why the key at `path` is invalid."""
    reason = reason_against(spell(path[1:])) if path[0] == "deepspeed" else None
    return f"not allowed: {reason}" if reason else f"unknown key; {suggestion(root, path)}"


def _description(root: type[Strict], path: Path) -> str:
    """Return the docstring of the field at `path`, in lower case; empty without one."""
    model = model_at(root, path[:-1])
    field = fields_of(model).get(str(path[-1])) if model else None
    return lower_first(field.description or "").removesuffix(".") if field else ""


def lower_first(text: str) -> str:
    """Return the text with a lower-case first letter."""
    return text[:1].lower() + text[1:]
