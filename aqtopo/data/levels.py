"""Plausible level of a variable: the mean of many values, which shows units that single values do not.

A concentration in kg m-3 or mg m-3 that is labelled ug m-3 lies within the valid range, close to zero. Its
mean over an area does not: see `Variable.plausible_level`. Where the mean of the training years is known, a
mean of less than 1/200 of it is refused too; this tells mg m-3 from ug m-3 for every pollutant.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqtopo.variables import Variable

FEWEST_VALUES = 4
"""Fewer values do not show the units: single observations may be at the detection limit."""

LEAST_OF_USUAL = 0.005
"""Least plausible mean concentration over an area, as a part of the mean of the training years."""


def level(variable: Variable, values: NDArray[np.floating[Any]]) -> float:
    """Return the mean of finite values, of a pollutant of those above zero; NaN if there are too few.

    Zeros and small negative values are usual below the detection limit and in forecasts.
    """
    with np.errstate(invalid="ignore"):
        counted = values > 0 if variable.pollutant else np.isfinite(values)
    if np.count_nonzero(counted) < FEWEST_VALUES:
        return math.nan
    return float(np.mean(values, where=counted, dtype=np.float64))


def implausible_level(variable: Variable, mean: float, usual: float = math.nan) -> str | None:
    """Return the fact about a mean that no data have in the variable's units; None if it is plausible.

    Args:
        variable: its description.
        mean: from `level`, or over years.
        usual: mean of the training years, NaN if unknown.
    """
    low, high = variable.plausible_level or (-math.inf, math.inf)
    fact = f"has a mean {variable.name} of {mean:g}"
    if mean < low or mean > high:
        return f"{fact}, outside {low:g} to {high:g} {variable.units}: it is in other units"
    if variable.pollutant and mean < LEAST_OF_USUAL * usual:
        return f"{fact} {variable.units}, and the training years' mean is {usual:g}: it is in other units"
    return None
