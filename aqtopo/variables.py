"""Variables of the data set: names, units, ranges, published normalisation; and the time limit of a read.

The order of `INPUT_VARIABLES` must not change: the model's per-variable weights are stored in it.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

VariableKind = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Variable:
    """One physical field.

    Attributes:
        name: short name, as in CAQRA and the store.
        long_name: name in tables, plots and files.
        standard_name: CF standard name, or None where CF has none.
        units: UDUNITS string; concentrations are in ug m-3, carbon monoxide too.
        kind: `dynamic` for hourly fields, `static` for constant ones.
        valid_range: lowest and highest physically plausible value, in `units`.
        topoflow_mean: mean published with TopoFlow, in `units`.
        topoflow_std: standard deviation published with TopoFlow, in `units`.
    """

    name: str
    long_name: str
    standard_name: str | None
    units: str
    kind: VariableKind
    valid_range: tuple[float, float]
    topoflow_mean: float
    topoflow_std: float


def _pollutant(
    name: str, long_name: str, species: str, highest: float, topoflow_mean: float, topoflow_std: float
) -> Variable:
    standard_name = f"mass_concentration_of_{species}_in_air"
    valid_range = (0.0, highest)
    return Variable(
        name, long_name, standard_name, "ug m-3", "dynamic", valid_range, topoflow_mean, topoflow_std
    )


_ALL = (
    Variable("u", "eastward wind", "eastward_wind", "m s-1", "dynamic", (-120.0, 120.0), 0.0, 10.0),
    Variable("v", "northward wind", "northward_wind", "m s-1", "dynamic", (-120.0, 120.0), 0.0, 10.0),
    Variable("temp", "air temperature", "air_temperature", "K", "dynamic", (180.0, 340.0), 273.15, 30.0),
    Variable("rh", "relative humidity", "relative_humidity", "%", "dynamic", (0.0, 110.0), 50.0, 30.0),
    Variable(
        "psfc", "surface pressure", "surface_air_pressure", "Pa", "dynamic", (3e4, 1.1e5), 101325.0, 1000.0
    ),
    _pollutant("pm10", "PM10", "pm10_ambient_aerosol_particles", 1e4, 50.0, 25.0),
    _pollutant("so2", "sulfur dioxide", "sulfur_dioxide", 5e3, 5.0, 5.0),
    _pollutant("no2", "nitrogen dioxide", "nitrogen_dioxide", 2e3, 20.0, 15.0),
    _pollutant("co", "carbon monoxide", "carbon_monoxide", 1e5, 200.0, 100.0),
    _pollutant("o3", "ozone", "ozone", 2e3, 40.0, 20.0),
    Variable("lat2d", "latitude", "latitude", "degrees_north", "static", (-90.0, 90.0), 32.0, 12.0),
    Variable("lon2d", "longitude", "longitude", "degrees_east", "static", (-180.0, 360.0), 106.0, 16.0),
    _pollutant("pm25", "PM2.5", "pm2p5_ambient_aerosol_particles", 5e3, 25.0, 15.0),
    Variable("elevation", "elevation", "surface_altitude", "m", "static", (-500.0, 9000.0), 1039.13, 1931.40),
    Variable("population", "population density", None, "km-2", "static", (0.0, 5e6), 13381.20, 67986.97),
)

VARIABLES = MappingProxyType({variable.name: variable for variable in _ALL})
"""Every variable by its short name."""

INPUT_VARIABLES = tuple(VARIABLES)
"""Input channels of the model, in the order of its per-variable weights."""

DYNAMIC_VARIABLES = tuple(name for name, variable in VARIABLES.items() if variable.kind == "dynamic")
"""Hourly fields, in input order: the channels of the store's `fields` array."""

STATIC_VARIABLES = tuple(name for name, variable in VARIABLES.items() if variable.kind == "static")
"""Constant inputs, in input order."""

STATIC_CHANNELS = ("elevation", "population", "lat2d", "lon2d", "mask")
"""Channels of the store's `static` array; `mask` is 1 on the cells of the loss and the scores."""

TARGET_VARIABLES = ("pm25", "pm10", "so2", "no2", "co", "o3")
"""Forecast pollutants, in the order of the head's outputs."""

HORIZONS_H = (12, 24, 48, 96)
"""Forecast horizons [h]."""

READ_DEADLINE_S = 300
"""Default timeout of the file system [s]; a shard takes milliseconds."""
