"""`--set path=value`: changing single values of a configuration before it is checked."""

import json
from typing import Any

from pydantic_core import PydanticUndefined

from aqtopo.config.errors import Override, unknown_key
from aqtopo.config.paths import default_at, model_at, parse, spell
from aqtopo.config.run import RunConfig
from aqtopo.config.strict import Path


def parse_override(text: str) -> Override:
    """Read `path=value`; the value is JSON where it parses as such, else a string.

    Raises:
        ValueError: no `=`, or what stands before it is no path.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: must be path=value, such as --set model.depth=2")
    try:
        return Override(text, parse(path.strip()), _value(value.strip()))
    except ValueError as error:
        raise ValueError(f"--set {text}: {error}") from None


def apply_override(document: dict[str, Any], override: Override) -> None:
    """Set the override's value in `document`, in place.

    Objects on the way which the file leaves out come to be; a list which it leaves out starts as its default.

    Raises:
        ValueError: the path leads through a value that is neither object nor list, or past a list's end.
    """
    container: Any = document
    for depth, part in enumerate(override.path[:-1], start=1):
        here = override.path[:depth]
        if isinstance(container, dict) and part not in container:
            container[part] = _start_of(here, override)
        container = container[_key(container, here, override)]
    container[_key(container, override.path, override)] = override.value


def _start_of(path: Path, override: Override) -> object:
    """What stands at `path` before the override descends into it: an empty object, or a list's default."""
    default = default_at(RunConfig, path)
    if isinstance(default, list):
        return default
    if model_at(RunConfig, path) is None:
        known = default is not PydanticUndefined
        reason = "it holds a single value" if known else unknown_key(path, RunConfig)
        raise ValueError(f"--set {override.text}: {spell(path)}: {reason}")
    return {}


def _key(container: Any, path: Path, override: Override) -> str | int:
    """The last part of `path` as a key of `container`, which must have room for it."""
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
