"""Forcings: inputs computed from time and place."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

HOURS_PER_DAY = 24
DAYS_PER_YEAR = 365.2425
DEGREES_PER_HOUR = 15.0

Values = NDArray[np.float64]


def forcing(name: str, time: np.datetime64, lat: Values, lon: Values) -> NDArray[np.float32]:
    """Return one forcing on the grid, not scaled.

    Args:
        name: one of `FORCINGS`.
        time: UTC.
        lat: (H,) degrees north.
        lon: (W,) degrees east, in any convention.

    Returns:
        (H, W), within -1 to 1.
    """
    values = FORCINGS[name](time.astype("datetime64[h]"), lat[:, None], lon[None, :])
    return np.broadcast_to(values, (lat.size, lon.size)).astype(np.float32)


def _local_time(time: np.datetime64, lon: Values) -> Values:
    """Return the mean solar time as an angle [radians], 0 at midnight."""
    hour = time.astype(np.int64) % HOURS_PER_DAY + lon / DEGREES_PER_HOUR
    return 2.0 * np.pi * hour / HOURS_PER_DAY


def _time_of_year(time: np.datetime64) -> Values:
    """Return the time of the mean tropical year as an angle [radians], 0 at the start of 1970."""
    return np.array([[2.0 * np.pi * time.astype(np.int64) / HOURS_PER_DAY / DAYS_PER_YEAR]])


def _insolation(time: np.datetime64, lat: Values, lon: Values) -> Values:
    """Return the cosine of the solar zenith angle, 0 at night."""
    import pandas as pd
    from pvlib import solarposition

    moment = pd.DatetimeIndex([pd.Timestamp(time, tz="UTC")])
    day = moment.day_of_year.to_numpy()
    # The hour angle of longitude 0 [degrees] plus the longitude.
    angle = solarposition.hour_angle(moment, 0.0, solarposition.equation_of_time_spencer71(day)) + lon
    declination = solarposition.declination_spencer71(day)
    zenith = solarposition.solar_zenith_analytical(np.deg2rad(lat), np.deg2rad(angle), declination)
    insolation: Values = np.maximum(np.cos(zenith), 0.0)
    return insolation


FORCINGS: dict[str, Callable[[np.datetime64, Values, Values], Values]] = {
    "cos_local_time": lambda time, _lat, lon: np.cos(_local_time(time, lon)),
    "sin_local_time": lambda time, _lat, lon: np.sin(_local_time(time, lon)),
    "cos_julian_day": lambda time, _lat, _lon: np.cos(_time_of_year(time)),
    "sin_julian_day": lambda time, _lat, _lon: np.sin(_time_of_year(time)),
    "insolation": _insolation,
}
"""Each forcing by name, as functions of time [UTC], latitude (H, 1) and longitude (1, W) [degrees]."""
