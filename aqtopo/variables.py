"""Descriptions of variables; those of CAQRA are the default; and the time limit of a read.

A store describes its own channels, so it may hold variables that are not listed here. The order of
`INPUT_VARIABLES` must not change: the model's per-variable weights are stored in it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal

VariableKind = Literal["dynamic", "static"]

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
"""Names of variables, which become keys of files and names of their variables."""

RESERVED_NAMES = frozenset(
    {"all", "channel", "init_time", "lat", "lead_time", "lon", "mask", "static_channel", "time", "val_loss"}
)
"""Names with another meaning in stores, forecasts and results."""

MAX_TEXT = 200
"""Characters of a long name, a standard name or units."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One physical field.

    Attributes:
        name: short name in the store and the configuration: letters, digits and underscore.
        long_name: name in tables, plots and files.
        standard_name: CF standard name, or None where CF has none.
        units: UDUNITS string; concentrations of CAQRA are in ug m-3, carbon monoxide too.
        kind: `dynamic` for hourly fields, `static` for constant ones.
        valid_range: lowest and highest physically plausible value, in `units`.
        pollutant: it can be a target; small negative values of it are kept.
        topoflow_mean: mean published with TopoFlow, in `units`, or None.
        topoflow_std: standard deviation published with TopoFlow, in `units`, or None.
        plausible_level: lowest and highest plausible mean over an area at one hour, in `units`, or None; of a
            pollutant, the mean of the values above zero. Data with another mean are refused.

    Raises:
        ValueError: an attribute has another type or an impossible value.
    """

    name: str
    long_name: str
    units: str
    valid_range: tuple[float, float]
    standard_name: str | None = None
    kind: VariableKind = "dynamic"
    pollutant: bool = False
    topoflow_mean: float | None = None
    topoflow_std: float | None = None
    plausible_level: tuple[float, float] | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """CF attributes of an array of this variable."""
        described = {"long_name": self.long_name, "units": self.units}
        return described | ({"standard_name": self.standard_name} if self.standard_name else {})

    def __post_init__(self) -> None:
        check_name(self.name)
        for key in ("long_name", "units", "standard_name"):
            text = getattr(self, key)
            if not (key == "standard_name" and text is None) and not _is_text(text):
                self._refuse(key, f"printable text of 1 to {MAX_TEXT} characters")
        # They are a column of the scores' CSV.
        if re.match(r"[=+@]|-.", self.units):
            self._refuse("units", "a text that spreadsheets do not run as a formula")
        if self.kind not in ("dynamic", "static"):
            self._refuse("kind", "'dynamic' or 'static'")
        if not isinstance(self.pollutant, bool):
            self._refuse("pollutant", "True or False")
        if self.pollutant and self.kind == "static":
            self._refuse("pollutant", "False for a static variable")
        self._check_pair("valid_range", "two numbers, the lowest and the highest value")
        if self.plausible_level is not None:
            self._check_pair("plausible_level", "two numbers, the lowest and the highest mean, or None")
        for key in ("topoflow_mean", "topoflow_std"):
            value = getattr(self, key)
            if value is not None and not _is_number(value):
                self._refuse(key, "a number or None")

    def _check_pair(self, key: str, allowed: str) -> None:
        pair = getattr(self, key)
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
            self._refuse(key, allowed)
        low, high = map(float, pair)
        if not low < high:
            self._refuse(key, "two numbers, the lower one first")
        object.__setattr__(self, key, (low, high))

    def _refuse(self, key: str, allowed: str) -> None:
        raise ValueError(
            f"The variable {self.name} has {key} = {getattr(self, key)!r}. It must be {allowed}."
        )


Variables = Mapping[str, Variable]
"""Descriptions by short name."""


def variables_as_json(variables: Iterable[Variable]) -> list[dict[str, Any]]:
    """Return descriptions as they are kept in files and attributes."""
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(variable).items()}
        for variable in variables
    ]


def variables_from_json(described: Iterable[Mapping[str, Any]]) -> Variables:
    """Return descriptions from a file, and those of CAQRA for files without any.

    Raises:
        ValueError: a description has another type or an impossible value.
    """
    try:
        return with_defaults(Variable(**each) for each in described)
    except TypeError as error:
        raise ValueError(f"The descriptions of variables cannot be read ({error}).") from error


def with_defaults(variables: Iterable[Variable]) -> Variables:
    """Return descriptions by name, together with those of CAQRA."""
    return {**VARIABLES, **{variable.name: variable for variable in variables}}


def check_name(name: object) -> None:
    """Check that a name can be a variable's.

    Raises:
        ValueError: it has other characters, or another meaning.
    """
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"{name!r} cannot be the name of a variable. It must begin with a letter and have at most 64 "
            "letters, digits and underscores."
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} cannot be the name of a variable: it has another meaning. Rename it.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= MAX_TEXT and value.isprintable()


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _published(
    name: str,
    long_name: str,
    standard_name: str | None,
    units: str,
    valid_range: tuple[float, float],
    topoflow: tuple[float, float],
    kind: VariableKind = "dynamic",
    pollutant: bool = False,
    level: tuple[float, float] | None = None,
) -> Variable:
    return Variable(
        name=name,
        long_name=long_name,
        standard_name=standard_name,
        units=units,
        valid_range=valid_range,
        kind=kind,
        pollutant=pollutant,
        topoflow_mean=topoflow[0],
        topoflow_std=topoflow[1],
        plausible_level=level,
    )


def _pollutant(
    name: str,
    long_name: str,
    species: str,
    highest: float,
    topoflow: tuple[float, float],
    level: tuple[float, float],
) -> Variable:
    standard_name = f"mass_concentration_of_{species}_in_air"
    return _published(
        name, long_name, standard_name, "ug m-3", (0.0, highest), topoflow, pollutant=True, level=level
    )


# Plausible levels. The lowest are below the means over the cleanest areas, in ug m-3:
# - PM2.5 0.1 and PM10 0.2: sulfate and sea salt of the Antarctic plateau in winter; open oceans have 3.
# - SO2 0.01 and NO2 0.006: 4 and 3 ppt over the South Pacific. Thousandths of polluted areas (5, and 10
#   to 20) are no lower, so the level tells kg m-3 from ug m-3, but not always mg m-3.
# - CO 40: 35 ppb, the southern hemisphere's background. In mg m-3, Chinese cities have 1.
# - O3 1: the Arctic while bromine removes it in spring; other areas have 20 to 150.
# Humidity is 50 % or 0.5.


_ALL = (
    _published("u", "eastward wind", "eastward_wind", "m s-1", (-120.0, 120.0), (0.0, 10.0)),
    _published("v", "northward wind", "northward_wind", "m s-1", (-120.0, 120.0), (0.0, 10.0)),
    _published("temp", "air temperature", "air_temperature", "K", (180.0, 340.0), (273.15, 30.0)),
    _published(
        "rh", "relative humidity", "relative_humidity", "%", (0.0, 110.0), (50.0, 30.0), level=(2.0, 100.0)
    ),
    _published("psfc", "surface pressure", "surface_air_pressure", "Pa", (3e4, 1.1e5), (101325.0, 1000.0)),
    _pollutant("pm10", "PM10", "pm10_ambient_aerosol_particles", 1e4, (50.0, 25.0), (0.06, 1e4)),
    _pollutant("so2", "sulfur dioxide", "sulfur_dioxide", 5e3, (5.0, 5.0), (0.003, 5e3)),
    _pollutant("no2", "nitrogen dioxide", "nitrogen_dioxide", 2e3, (20.0, 15.0), (0.002, 2e3)),
    _pollutant("co", "carbon monoxide", "carbon_monoxide", 1e5, (200.0, 100.0), (20.0, 2e4)),
    _pollutant("o3", "ozone", "ozone", 2e3, (40.0, 20.0), (0.3, 2e3)),
    _published("lat2d", "latitude", "latitude", "degrees_north", (-90.0, 90.0), (32.0, 12.0), "static"),
    _published("lon2d", "longitude", "longitude", "degrees_east", (-180.0, 360.0), (106.0, 16.0), "static"),
    _pollutant("pm25", "PM2.5", "pm2p5_ambient_aerosol_particles", 5e3, (25.0, 15.0), (0.04, 5e3)),
    _published(
        "elevation", "elevation", "surface_altitude", "m", (-500.0, 9000.0), (1039.13, 1931.40), "static"
    ),
    _published("population", "population density", None, "km-2", (0.0, 5e6), (13381.20, 67986.97), "static"),
)

VARIABLES = MappingProxyType({variable.name: variable for variable in _ALL})
"""CAQRA's variables by short name: the default description of a channel."""

INPUT_VARIABLES = tuple(VARIABLES)
"""Default input channels of the model, in the order of its per-variable weights."""

DYNAMIC_VARIABLES = tuple(name for name, variable in VARIABLES.items() if variable.kind == "dynamic")
"""CAQRA's hourly fields, in input order."""

STATIC_VARIABLES = tuple(name for name, variable in VARIABLES.items() if variable.kind == "static")
"""CAQRA's constant inputs, in input order."""

STATIC_CHANNELS = ("elevation", "population", "lat2d", "lon2d", "mask")
"""Static channels of CAQRA's store; `mask` is 1 on the cells of the loss and the scores."""

NEEDED_CHANNELS = {"fields": ("u", "v"), "static": ("elevation", "lat2d", "lon2d", "mask")}
"""Channels of each array that every store holds: wind order and terrain need them."""

TARGET_VARIABLES = ("pm25", "pm10", "so2", "no2", "co", "o3")
"""Default forecast pollutants, in the order of the head's outputs."""

HORIZONS_H = (12, 24, 48, 96)
"""Forecast horizons [h]."""

READ_DEADLINE_S = 300
"""Default timeout of the file system [s]; a shard takes milliseconds."""
