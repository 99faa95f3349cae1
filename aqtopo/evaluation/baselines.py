"""What a forecast has to beat at the least: persistence. Climatology is in `aqtopo.evaluation.climatology`.

Shapes: B initial time, K horizon, C pollutant, H x W grid; values in physical units, NaN where there is none.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.inference.forecast import channel_indices


def persistence(
    store: Store, pollutants: Sequence[str], init_times: Hours, horizons: int
) -> NDArray[np.float32]:
    """The fields of the initial times, unchanged at each of so many horizons: (B, K, C, H, W)."""
    channels = channel_indices(store, pollutants)
    initial = np.stack([store.read(index)[channels] for index in store.locate(init_times)])
    return np.broadcast_to(initial[:, None], (len(initial), horizons, *initial.shape[1:]))
