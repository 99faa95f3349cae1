"""Finding a variable in a dataset by its short name, CF standard name or a usual other name."""

import xarray as xr

from aqtopo.refusal import raise_input_error
from aqtopo.variables import VARIABLES, Variable

_ALIASES = {
    "u": ("u10", "10u", "u10m", "uwnd", "uas"),
    "v": ("v10", "10v", "v10m", "vwnd", "vas"),
    "temp": ("t2m", "2t", "t2", "tas", "temperature", "airtemperature", "t"),
    "rh": ("relativehumidity", "rh2m", "2r", "r2", "hurs", "r"),
    "psfc": ("sp", "ps", "surfacepressure", "pres"),
    "pm25": ("pm2p5", "pm25dry", "pm25conc"),
    "pm10": ("pm10conc",),
    "so2": ("so2conc", "sulphurdioxide", "sulfurdioxide"),
    "no2": ("no2conc", "nitrogendioxide"),
    "co": ("coconc", "carbonmonoxide"),
    "o3": ("o3conc", "go3", "ozone"),
    "elevation": ("z", "height", "hgt", "topo", "altitude", "orog", "oro", "orography", "band1"),
    "population": ("populationdensity", "popdensity", "pop", "density", "band1"),
}
"""Names in lower case without `_`, `.` and `-`."""

_STANDARD_ALIASES = {
    "geopotential": "elevation",
    "surface_geopotential": "elevation",
    "altitude": "elevation",
    "height": "elevation",
    "height_above_mean_sea_level": "elevation",
    "surface_pressure": "psfc",
}


def find_variable(dataset: xr.Dataset, variable: Variable, source: str) -> str:
    """Return the name of a variable in a dataset: its short name, else by standard name, else an alias.

    Raises:
        ValueError: it is missing, two variables fit, or the standard name contradicts the name.
    """
    plain = {str(name): plain_name(str(name)) for name in dataset.data_vars}
    by_standard_name = [n for n in plain if _describes(dataset[n], variable)]
    candidates = [
        [n for n in plain if n == variable.name],
        by_standard_name,
        [n for n, p in plain.items() if p == plain_name(variable.name)],
        [n for n, p in plain.items() if p in _ALIASES.get(variable.name, ())],
    ]
    found = next((names for names in candidates if names), [])
    if not found:
        raise_input_error(
            source,
            f"has no {variable.name} ({variable.long_name}); it has {', '.join(plain) or 'no variable'}",
            f"Rename it to {variable.name}"
            + (f", or give it the standard_name {variable.standard_name}" if variable.standard_name else ""),
        )
    if len(found) > 1:
        raise_input_error(
            source,
            f"has more than one variable for {variable.name}: {', '.join(found)}",
            f"Rename the right one to {variable.name}, or drop the others",
        )
    standard = dataset[found[0]].attrs.get("standard_name")
    others = {v.standard_name: v.name for v in VARIABLES.values() if v.name != variable.name}
    if standard is not None and standard in others and not _describes(dataset[found[0]], variable):
        raise_input_error(
            source,
            f"has {found[0]} with the standard_name {standard}, which is {others[standard]}",
            "Correct the name or the standard_name",
        )
    return found[0]


def plain_name(name: str) -> str:
    """Return a name in lower case without `_`, `.` and `-`: `PM2.5` is `pm25`."""
    return name.lower().replace("_", "").replace(".", "").replace("-", "")


def _describes(array: xr.DataArray, variable: Variable) -> bool:
    standard = str(array.attrs.get("standard_name", "")).replace("aerosol_particles", "aerosol")
    if not standard:
        return False
    return standard == str(variable.standard_name).replace("aerosol_particles", "aerosol") or (
        _STANDARD_ALIASES.get(standard) == variable.name
    )
