"""Conversion of units as people write them to the units of a variable."""

import functools
import logging
import re
import warnings
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

STANDARD_GRAVITY = 9.80665
"""[m s-2]; geopotential divided by it is height."""

_MASS_RATIO = re.compile(r"(?i)(kg|g|mg|ug|µg|μg|ng)\s*(/\s*kg|kg\s*(\*\*|\^)?\s*-1)")
_VOLUME_RATIO = re.compile(r"(?i)pp[mbt]v?|(n|u|µ|μ|p)?mole?s?\s*(/\s*mole?|mole?\s*(\*\*|\^)?\s*-1)")
_PEOPLE = re.compile(r"(?i)\b(persons?|people|inhabitants?|population|pop|count)\b")

_TEMPERATURE = re.compile(r"(?i)(degrees?|deg|°)[\s_]*(k|c|f)(elvin|elsius|ahrenheit)?")
_SEA_LEVEL = re.compile(r"(?i)(?<=\w)[\s_]*\(?(a\.?(m\.?)?s\.?l\.?|msl|above (mean )?sea[ -]level)\)?$")
"""Suffix of heights, as in `m asl`."""

_ALIASES = {
    "mb": "mbar",
    "millibar": "mbar",
    "hpa": "hPa",
    "pa": "Pa",
    "k": "K",
    "degk": "K",
    "c": "degC",
    "degc": "degC",
    "degreec": "degC",
    "degreesc": "degC",
    "degreescelsius": "degC",
    "fraction": "1",
    "ratio": "1",
    "unitless": "1",
    "dimensionless": "1",
    "0-1": "1",
    "(0-1)": "1",
    "gpdm": "dam",
    "geopotentialmeter": "m",
    "geopotentialmetre": "m",
    "ms-1": "m s-1",
    "ugm-3": "ug m-3",
    "µgm-3": "ug m-3",
    "μgm-3": "ug m-3",
    "mgm-3": "mg m-3",
    "kgm-3": "kg m-3",
}
"""Spellings that pint misses or misreads, in lower case without spaces, underscores, ^ and **."""

_PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    KeyError,
    SyntaxError,
    TypeError,
    ValueError,
    TokenError,
)
"""Exceptions of pint's parser for text that is no unit."""


class UnitsError(ValueError):
    """Units that cannot be converted; the text names both and the remedy."""


@dataclass(frozen=True)
class Conversion:
    """Linear conversion: `values * factor + offset`, and times air density for a mass ratio.

    Attributes:
        factor: factor from the given to the wanted units.
        offset: offset in the wanted units.
        needs_density: the result is still to be multiplied by the density of air [kg m-3].
    """

    factor: float = 1.0
    offset: float = 0.0
    needs_density: bool = False

    def __call__(self, values: Any) -> Any:
        """Return converted values."""
        return values if self == Conversion() else values * self.factor + self.offset


@functools.cache
def conversion(given: str, wanted: str) -> Conversion:
    """Return the conversion between two units.

    Geopotential is converted to metres; a mass ratio to a concentration, if multiplied by air density.

    Raises:
        UnitsError: the units are unknown, or of another dimension.
    """
    if given.strip() == wanted.strip():
        return Conversion()  # also of units that the library does not know, such as `molec cm-2`
    target = _parse(wanted)
    if target.dimensionless:
        return _to_fraction(given, wanted)
    if _VOLUME_RATIO.fullmatch(given.strip()):
        raise UnitsError(
            f"{given!r} is a ratio of volumes and cannot be converted to {wanted!r} without the molar mass. "
            f"Convert the values to {wanted!r}"
        )
    try:
        source = _parse(given)
    except UnitsError as error:
        raise UnitsError(f"{error}. Write them as UDUNITS does, for example {wanted!r}") from error
    registry = _registry()
    if _MASS_RATIO.fullmatch(given.strip()) and target.check("[mass] / [length] ** 3"):
        # 1 kg of the species per kg of air, times kg of air per m3.
        target = target / registry.Quantity(1.0, "kg m-3")
        return Conversion(_ratio(source, target), needs_density=True)
    if source.check("[length] ** 2 / [time] ** 2") and target.check("[length]"):
        source = source / registry.Quantity(STANDARD_GRAVITY, "m s-2")
    if source.dimensionality != target.dimensionality:
        raise UnitsError(
            f"{given!r} ({_dimension(source)}) cannot be converted to {wanted!r} ({_dimension(target)}). "
            f"Correct the attribute `units`, or convert the values to {wanted!r}"
        )
    zero = float(registry.Quantity(0.0, source.units).to(target.units).magnitude)
    one = float(registry.Quantity(1.0, source.units).to(target.units).magnitude)
    # Snapped: 1e9 from kg to ug would otherwise be 999999999.9999999.
    return Conversion(float(f"{(one - zero) * float(source.magnitude):.15g}"), zero)


def same_units(one: str, other: str) -> bool:
    """Return whether two strings mean the same units."""
    try:
        return conversion(one, other) == Conversion()
    except UnitsError:
        return False


def _to_fraction(given: str, wanted: str) -> Conversion:
    # pint calls degrees and mass ratios dimensionless too; relative humidity is neither.
    try:
        source = None if _MASS_RATIO.fullmatch(given.strip()) else _parse(given)
    except UnitsError:
        source = None
    if source is None or str(source.units) not in ("dimensionless", "percent"):
        raise UnitsError(
            f"{given!r} cannot be converted to {wanted!r}. Give a fraction ('1') or a percentage ('%')"
        )
    return Conversion(_ratio(source, _parse(wanted)))


def _ratio(source: Any, target: Any) -> float:
    return float(f"{float((source / target).to('dimensionless').magnitude):.15g}")


def _parse(text: str) -> Any:
    """Return a pint quantity of the text, of magnitude 1 unless the text has a number."""
    import pint

    if temperature := _TEMPERATURE.fullmatch(text.strip()):
        text = {"k": "K", "c": "degC", "f": "degF"}[temperature[2].lower()]
    text = _SEA_LEVEL.sub("", text.strip())
    known = re.sub(r"[\s_^]|\*\*", "", text).lower()
    plain = _ALIASES.get(known, _PEOPLE.sub("1", text.strip()))
    for spelling in (plain, plain.lower()):
        try:
            found = _registry().Quantity(1, spelling) if spelling == "1" else _registry()(spelling)
            if float(found.magnitude) > 0 and "grain" not in str(found.units):  # "gr" is meant as gram
                return found
        except (pint.PintError, *_PARSER_ERRORS):
            continue
    raise UnitsError(f"the units {text!r} are unknown")


def _dimension(quantity: Any) -> str:
    return str(quantity.dimensionality).replace("[", "").replace("]", "")


def _registry() -> Any:
    # Imported when needed: it takes half a second. pint warns of each unit that cf_xarray redefines.
    logging.getLogger("pint.util").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*matplotlib support")  # an extra, which conversion does not need
        from cf_xarray.units import units

    return units
