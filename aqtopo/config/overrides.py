"""Overrides `--set path=value` of single values, applied before the checks."""

import json
from typing import Any

from pydantic_core import PydanticUndefined

from aqtopo.config.errors import Override, unknown_key
from aqtopo.config.paths import default_at, model_at, parse, spell
from aqtopo.config.run import RunConfig
from aqtopo.config.strict import Path


def parse_override(text: str) -> Override:
    """Parse `path=value`; the value is JSON if it parses as JSON, else a string.

    Raises:
        ValueError: `=` is missing, or the path is invalid.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: must be path=value, such as --set model.depth=2")
    try:
        return Override(text, parse(path.strip()), _value(value.strip()))
    except ValueError as error:
        raise ValueError(f"--set {text}: {error}") from None


def apply_override(document: dict[str, Any], override: Override) -> None:
    """Set the override's value in `document`, in place; create missing objects and default lists.

    Raises:
        ValueError: the path leads through a scalar, or past the end of a list.
    """
    container: Any = document
    for depth, part in enumerate(override.path[:-1], start=1):
        here = override.path[:depth]
        if isinstance(container, dict) and part not in container:
            container[part] = _start_of(here, override)
        container = container[_key(container, here, override)]
    container[_key(container, override.path, override)] = override.value


def _start_of(path: Path, override: Override) -> object:
    """Return the start value of a missing container: an empty object, or a list's default."""
    default = default_at(RunConfig, path)
    if isinstance(default, list):
        return default
    if model_at(RunConfig, path) is None:
        known = default is not PydanticUndefined
        reason = "it holds a single value" if known else unknown_key(path, RunConfig)
        raise ValueError(f"--set {override.text}: {spell(path)}: {reason}")
    return {}


def _key(container: Any, path: Path, override: Override) -> str | int:
    """Return the last part of `path` as a valid key of `container`."""
    key, parent = path[-1], spell(path[:-1])
    if isinstance(container, dict) and isinstance(key, str):
        return key
    if isinstance(container, list) and isinstance(key, int):
        if key < len(container):
            return key
        raise ValueError(f"--set {override.text}: {parent} has {len(container)} items, counted from 0")
    raise ValueError(f"--set {override.text}: {parent} is {_kind(container)}")


def _kind(container: object) -> str:
    if isinstance(container, dict):
        return "an object, and its keys are names"
    if isinstance(container, list):
        return "a list, and its items are counted from 0"
    return f"{json.dumps(container)}, which has no parts"


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None
