"""Numbers, units, places and times as text on the pages."""

from collections.abc import Sequence

import numpy as np


def capitalised(name: str) -> str:
    """Return a name with a capital: `sulfur dioxide` becomes `Sulfur dioxide`."""
    return name[:1].upper() + name[1:]


def pretty_units(units: str) -> str:
    """Format UDUNITS text: `ug m-3` becomes `µg m⁻³`."""
    superscripts = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    words = [word.replace("ug", "µg") for word in units.split()]
    return "\N{NO-BREAK SPACE}".join(
        word.rstrip("-0123456789") + word[len(word.rstrip("-0123456789")) :].translate(superscripts)
        for word in words
    )


def round_together(values: Sequence[float]) -> tuple[str, ...]:
    """Round numbers to three digits of the largest."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=1.0)
    decimals = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return tuple(rounded(value, decimals) if np.isfinite(value) else "n/a" for value in values)


def rounded(value: float, decimals: int) -> str:
    """Format a number; a zero after rounding has no sign."""
    return f"{value:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def plus(text: str) -> str:
    """Add the plus sign to a positive rounded number."""
    return f"+{text}" if text.strip("0.")[:1].isdigit() else text


def degrees_text(degrees: float, letters: str, decimals: int = 0) -> str:
    """Format degrees with the first letter if they are positive, or with the second: `39°N`."""
    return f"{abs(degrees):.{decimals}f}°{letters[degrees < 0]}"


def place_text(lat: float, lon: float) -> str:
    """Format degrees north and east as `39.9°N 116.4°E`."""
    return f"{degrees_text(lat, 'NS', 1)} {degrees_text(lon, 'EW', 1)}"


def time_text(time: np.datetime64) -> str:
    """Format a time as `2018-01-15 00:00 UTC`."""
    return f"{np.datetime_as_string(time, unit='m').replace('T', ' ')} UTC"
