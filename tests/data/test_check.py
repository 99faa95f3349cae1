from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aqtopo.config import RunConfig
from aqtopo.data import normalization_for, open_store
from aqtopo.data.check import check_store

TinyConfig = Callable[..., RunConfig]


def test_check_of_a_valid_store_returns_the_normalisation(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    assert check_store(store, tiny_config()) == normalization_for(tiny_config(), store)


def test_another_grid_is_refused_with_both_shapes(tiny_store: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config(data={"grid": [16, 16]})
    with pytest.raises(
        ValueError, match=r"has 8 x 16 cells, but `data.grid` is 16 x 16.*\[8, 16\]"
    ) as caught:
        check_store(open_store(tiny_store), config)
    assert str(tiny_store) in str(caught.value)


def test_a_channel_that_the_store_lacks_is_refused(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    without = replace(store, variables={n: v for n, v in store.variables.items() if n != "so2"})
    with pytest.raises(ValueError, match="lacks the channel so2; it has u, v,"):
        check_store(without, tiny_config())


@pytest.mark.parametrize(
    ("factor", "message"), [(1e-3, "no point higher than 3.* kilometres"), (1e3, "values of elevation")]
)
def test_elevation_in_other_units_than_metres_is_refused(
    tiny_store: Path, tiny_config: TinyConfig, factor: float, message: str
) -> None:
    store = open_store(tiny_store)
    static = {**store.static, "elevation": store.static["elevation"] * np.float32(factor)}
    with pytest.raises(ValueError, match=message):
        check_store(replace(store, static=static), tiny_config())


def test_a_world_without_relief_is_allowed(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    flat = {**store.static, "elevation": np.zeros_like(store.static["elevation"])}
    check_store(replace(store, static=flat), tiny_config())


def test_a_mean_in_other_units_is_refused(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    milligrams = replace(store, mean={**store.mean, "co": store.mean["co"] / 1e3})
    with pytest.raises(ValueError, match=r"a mean co of 0\.\d+, outside 20 to 20000 ug m-3"):
        check_store(milligrams, tiny_config())
