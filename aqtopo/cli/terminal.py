r"""Output on a terminal: names from files cannot move the cursor, hide text or change the window.

Control characters are written as `\x1b`, as are halves of surrogate pairs and the characters that change the
direction of writing.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_COLOUR = r"\x1b\[[0-9;]*m"
_HARMFUL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
_RETURN = r"\r"


def escaped(text: str) -> str:
    """Return a text with its harmful characters escaped."""
    return re.sub(f"{_RETURN}|{_HARMFUL}", _escape, text)


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1] if len(found[0]) == 1 else found[0]


class EscapedStream:
    r"""Text stream that escapes harmful characters, except for colours; `progress` also keeps `\r`."""

    def __init__(self, stream: Any, progress: bool = False) -> None:
        self._stream = stream
        self._pattern = re.compile("|".join([_COLOUR, _HARMFUL, *([] if progress else [_RETURN])]))

    def write(self, text: str) -> Any:
        """Write a text."""
        return self._stream.write(self._pattern.sub(_escape, text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def new_console(**options: Any) -> "Console":
    """Return a console that prints names as they are: no markup, no emoji."""
    from rich.console import Console

    return Console(markup=False, emoji=False, **options)
