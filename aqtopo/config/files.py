"""Reader of configuration files, and their JSON schema."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aqtopo.config.errors import describe, lower_first
from aqtopo.config.overrides import apply_override, parse_override
from aqtopo.config.paths import spell
from aqtopo.config.run import RunConfig
from aqtopo.config.strict import Path as JsonPath


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read the configuration of a run and check it.

    Args:
        path: JSON file.
        overrides: changes such as `model.depth=4`, which are applied in order.

    Raises:
        ValueError: the file is unreadable, not JSON or invalid; one line per error with file, path, value and
            accepted values.
    """
    return checked_config(read_document(Path(path)), path, overrides)


def checked_config(document: dict[str, Any], path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Apply overrides to the JSON of a file, which they change, and check it.

    Raises:
        ValueError: it is invalid, as in `load_config`; `path` is the file that the message names.
    """
    parsed = [parse_override(text) for text in overrides]
    for override in parsed:
        apply_override(document, override)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise ValueError(describe(error, RunConfig, str(path), parsed)) from None


def schema() -> str:
    """Return the JSON schema of a configuration file, without the checks between values."""
    return json.dumps(RunConfig.model_json_schema(), indent=2) + "\n"


MAX_DEPTH = 50
TOO_DEEP = f"holds lists or objects nested more than {MAX_DEPTH} deep, and a configuration needs few"


class _Object(dict[str, Any]):
    """JSON object that records duplicate keys."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    keys = [key for key, _ in pairs]
    result.repeated = tuple(key for place, key in enumerate(keys) if key in keys[:place])
    return result


def read_document(path: Path) -> dict[str, Any]:
    """Parse a JSON file with one object without duplicate keys.

    Raises:
        ValueError: the file is missing, not UTF-8, not JSON, not an object, or has a duplicate key.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}. Name a configuration file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; a configuration is JSON text.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: {place}: not JSON: {lower_first(error.msg)}.") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise ValueError(f"{path}: has a number that is too long: {lower_first(str(error))}.") from None
    except RecursionError:
        raise ValueError(f"{path}: {TOO_DEEP}.") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: must hold one JSON object, but holds a {type(document).__name__}.")
    try:
        places = list(_repeated(document))
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    repeated = [f"{path}: {spell(place)}: is a duplicate key; keep one of them" for place in places]
    if repeated:
        raise ValueError("\n".join(repeated))
    return document


def _repeated(value: object, path: JsonPath = ()) -> Iterator[JsonPath]:
    """Yield the paths of all duplicate keys.

    Raises:
        ValueError: the values are nested too deeply.
    """
    if len(path) > MAX_DEPTH:
        raise ValueError(f"{spell(path[:3])}: {TOO_DEEP}")
    if isinstance(value, _Object):
        yield from ((*path, key) for key in value.repeated)
        for key, item in value.items():
            yield from _repeated(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _repeated(item, (*path, place))
