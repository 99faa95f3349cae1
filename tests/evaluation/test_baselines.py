"""Persistence, against the store."""

from pathlib import Path

import numpy as np

from aqtopo.data import open_store
from aqtopo.evaluation.baselines import persistence


def test_persistence_repeats_the_initial_fields_at_every_horizon(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    times = store.times[[30, 7]]
    forecast = persistence(store, ("co", "pm25"), times, 3)
    assert forecast.shape == (2, 3, 2, 8, 16)
    for horizon in range(3):
        np.testing.assert_array_equal(forecast[1, horizon, 0], store.read(7)[store.channels.index("co")])
        np.testing.assert_array_equal(forecast[0, horizon, 1], store.read(30)[store.channels.index("pm25")])
