"""Paths in a configuration: their spelling, and the models and defaults at a path."""

import difflib
import json
import re
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from aqtopo.config.strict import Path, Strict

_PATH = re.compile(r"^[^.\[\]]+(?:\.[^.\[\]]+|\[\d+\])*$")


def spell(path: Path) -> str:
    """Format ("optimizer", "groups", 0, "name") as `optimizer.groups[0].name`; quote unusual keys."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_spell_key(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def _spell_key(key: str) -> str:
    """Return the key, as JSON if it has characters other than letters, digits, _, $ and -."""
    return key if re.fullmatch(r"[\w$-]+", key, re.ASCII) else json.dumps(key)


def parse(text: str) -> Path:
    """Parse a path; a list index is written `groups[0]` or, because of shells, `groups.0`.

    Raises:
        ValueError: the text is not a path.
    """
    if not _PATH.match(text):
        raise ValueError(f"{text!r} is not a path such as model.depth or optimizer.groups.0.lr_multiplier")
    parts = re.split(r"[.\[]", text.replace("]", ""))
    return tuple(int(part) if part.isdigit() else part for part in parts)


def fields_of(model: type[Strict]) -> dict[str, Any]:
    """Return the fields of a model by JSON key."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_at(root: type[Strict], path: Path) -> type[Strict] | None:
    """Return the model of the object at `path`; None if there is no object."""
    model: type[Strict] | None = root
    for part in path:
        if isinstance(part, int):
            continue  # the items of a list share one model
        field = fields_of(model).get(part) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def default_at(root: type[Strict], path: Path) -> object:
    """Return the JSON default of the field at `path`; `PydanticUndefined` without one."""
    model = model_at(root, path[:-1])
    field = fields_of(model).get(str(path[-1])) if model else None
    if field is None:
        return PydanticUndefined
    return _as_json(field.get_default(call_default_factory=True))


def places_of(root: type[Strict], key: str, below: Path = ()) -> Iterator[Path]:
    """Yield all paths below `root` that end in `key`."""
    for name, field in fields_of(root).items():
        if name == key:
            yield (*below, name)
        model = _model_in(field.annotation)
        if model:
            yield from places_of(model, key, (*below, name))


def suggestion(root: type[Strict], path: Path) -> str:
    """Suggest a key for the unknown key at `path`, or list the known keys."""
    model, key = model_at(root, path[:-1]), str(path[-1])
    known = list(fields_of(model)) if model else []
    close = difflib.get_close_matches(key, known, n=1) or [name for name in known if name.startswith(key)]
    if close:
        return f"did you mean {close[0]}?"
    places = list(places_of(root, key))
    if len(places) == 1:
        return f"it belongs to {spell(places[0])}"
    return f"known here: {', '.join(name for name in known if name != '$schema')}"


def _model_in(annotation: object) -> type[Strict] | None:
    """Return the model in an annotation such as `Model`, `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return next((model for model in map(_model_in, get_args(annotation)) if model), None)
    return None


def _as_json(value: object) -> object:
    if isinstance(value, Strict):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value
