"""Forcings: inputs computed from time and place."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

HOURS_PER_DAY = 24
DAYS_PER_YEAR = 365.2425
DEGREES_PER_HOUR = 15.0

Values = NDArray[np.float64]


def forcing(name: str, times: NDArray[np.datetime64], lat: Values, lon: Values) -> NDArray[np.float32]:
    """Return one forcing on the grid at several times, not scaled.

    Args:
        name: one of `FORCINGS`.
        times: (T,), UTC.
        lat: (H,) degrees north.
        lon: (W,) degrees east, in any convention.

    Returns:
        (T, H, W), within -1 to 1.
    """
    hours = times.astype("datetime64[h]")
    values = FORCINGS[name](hours[:, None, None], lat[:, None], lon)
    return np.broadcast_to(values, (times.size, lat.size, lon.size)).astype(np.float32)


def _local_time(times: NDArray[np.datetime64], lon: Values) -> Values:
    """Return the mean solar time as an angle [radians], 0 at midnight."""
    hour = times.astype(np.int64) % HOURS_PER_DAY + lon / DEGREES_PER_HOUR
    return 2.0 * np.pi * hour / HOURS_PER_DAY


def _time_of_year(times: NDArray[np.datetime64]) -> Values:
    """Return the time of the mean tropical year as an angle [radians], 0 at the start of 1970."""
    angle: Values = 2.0 * np.pi * times.astype(np.int64) / HOURS_PER_DAY / DAYS_PER_YEAR
    return angle


def _insolation(times: NDArray[np.datetime64], lat: Values, lon: Values) -> Values:
    """Return the cosine of the solar zenith angle, 0 at night."""
    import pandas as pd
    from pvlib import solarposition

    moments = pd.DatetimeIndex(times.ravel(), tz="UTC")
    day = moments.day_of_year.to_numpy()
    # The hour angle of longitude 0 [degrees].
    angle = solarposition.hour_angle(moments, 0.0, solarposition.equation_of_time_spencer71(day))
    declination = solarposition.declination_spencer71(day)
    zenith = solarposition.solar_zenith_analytical(
        np.deg2rad(lat), np.deg2rad(angle.reshape(times.shape) + lon), declination.reshape(times.shape)
    )
    insolation: Values = np.maximum(np.cos(zenith), 0.0)
    return insolation


FORCINGS: dict[str, Callable[[NDArray[np.datetime64], Values, Values], Values]] = {
    "cos_local_time": lambda times, _lat, lon: np.cos(_local_time(times, lon)),
    "sin_local_time": lambda times, _lat, lon: np.sin(_local_time(times, lon)),
    "cos_julian_day": lambda times, _lat, _lon: np.cos(_time_of_year(times)),
    "sin_julian_day": lambda times, _lat, _lon: np.sin(_time_of_year(times)),
    "insolation": _insolation,
}
"""Each forcing by name, as functions of time (T, 1, 1) [UTC], latitude (H, 1) and longitude (W,) [degrees]."""
