"""What is in a store, for people and programs to read."""

import math
from typing import Any

import numpy as np

from aqtopo.data.store import Store
from aqtopo.variables import VARIABLES

_HOUR = np.timedelta64(1, "h")


def gaps(store: Store) -> list[tuple[np.datetime64, np.datetime64]]:
    """First and last hour of every run of hours that are missing between the store's first and last."""
    before = np.flatnonzero(np.diff(store.times) > _HOUR)
    return list(zip(store.times[before] + _HOUR, store.times[before + 1] - _HOUR, strict=True))


def summarize(store: Store) -> dict[str, Any]:
    """Shape, times, gaps, channels with units and statistics, and source of a store, ready for JSON."""
    by_year = store.times.astype("datetime64[Y]").astype(int) + 1970
    return {
        "path": store.path,
        "source": store.source,
        "simulated": store.simulated,
        "grid": [store.lat.size, store.lon.size],
        "latitude": [float(store.lat[0]), float(store.lat[-1])],
        "longitude": [float(store.lon[0]), float(store.lon[-1])],
        "hours": int(store.times.size),
        "first": str(store.times[0]),
        "last": str(store.times[-1]),
        "hours_by_year": {str(year): int(np.count_nonzero(by_year == year)) for year in store.years},
        "gaps": [
            {"first": str(first), "last": str(last), "hours": int((last - first) // _HOUR) + 1}
            for first, last in gaps(store)
        ],
        "channels": {
            name: {
                "units": VARIABLES[name].units if name in VARIABLES else "1",
                "kind": "hourly" if name in store.channels else "static",
                "mean": _number(store.mean.get(name)),
                "std": _number(store.std.get(name)),
            }
            for name in (*store.channels, *store.static)
        },
        "statistics_years": list(store.statistics_years),
        "digest": store.digest,
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN; an unknown value is null."""
    return None if value is None or math.isnan(value) else value
