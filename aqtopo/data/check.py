"""Checks that a store fits a run, and that its terrain and statistics are plausible.

`open_store` checks the layout of a store, and `aqtopo.data.inspection` its hours.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aqtopo.data.channels import no_data
from aqtopo.data.levels import implausible_level
from aqtopo.data.metadata import check_fit
from aqtopo.data.schema import MIN_PEAK_M, raise_store_error
from aqtopo.data.statistics import Normalization, normalization_for
from aqtopo.data.store import Store

if TYPE_CHECKING:
    from aqtopo.config import RunConfig


def check_store(store: Store, config: "RunConfig") -> Normalization:
    """Check that the grid, channels and statistics of a store fit a run; return the run's normalisation.

    Raises:
        ValueError: they do not fit; the message names the store, the mismatch and the remedy.
    """
    check_fit(store, config)
    for fault, remedy in implausible_values(store):
        raise_store_error(store.path, fault, remedy)
    return normalization_for(config, store)


def implausible_values(store: Store) -> Iterator[tuple[str, str]]:
    """Yield each implausible terrain value or mean with its remedy; wrong units are the usual cause."""
    if not (store.static["mask"] > 0).any():
        yield (
            "has no cell of value 1 in its mask, so the loss and the scores would have no data",
            "Write the store again with a mask that is 1 in the cells of the loss and the scores.",
        )
    for name, variable in store.variables.items():
        if variable.kind == "dynamic":
            continue
        values, (low, high), units = store.static[name], variable.valid_range, variable.units
        if values.min() < low or values.max() > high:
            yield (
                f"has values of {name} from {values.min():g} to {values.max():g}, outside {low:g} to "
                f"{high:g} {units}",
                f"Write it again with {name} in {units}.",
            )
        elif (fills := no_data(variable, values)).any():
            yield (
                f"has {name} = {values[fills][0]:g} in {fills.sum()} of {fills.size} cells: a fill value",
                "Write it again with its values, 0 m over sea.",
            )
    highest = float(store.static["elevation"].max())
    if 0 < highest < MIN_PEAK_M:
        yield (
            f"has no point higher than {highest:g} m: its elevation is probably in kilometres",
            "Write it again with elevation in metres; the elevation bias of the attention depends on it.",
        )
    for name, axis in (("lat2d", store.lat[:, None]), ("lon2d", store.lon)):
        if abs(store.static[name] - axis).max() > 1e-3:
            yield (
                f"has {name} that differs from its axis",
                "Write it again with the coordinates of its cells.",
            )
    for name, mean in store.mean.items():
        if name in store.channels and math.isfinite(mean):
            variable = store.variables[name]
            low, high = variable.valid_range
            fact = implausible_level(variable, mean)
            if fact is None and not low <= mean <= high:
                fact = f"has a mean {name} of {mean:g}, outside {low:g} to {high:g} {variable.units}"
            if fact is not None:
                yield fact, f"Write it again with {name} in {variable.units}."
