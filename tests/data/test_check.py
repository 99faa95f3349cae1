from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aqtopo.config import RunConfig
from aqtopo.data import normalization_for, open_store
from aqtopo.data.check import check_store

TinyConfig = Callable[..., RunConfig]


def test_a_fit_store_gives_the_normalisation(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    assert check_store(store, tiny_config()) == normalization_for(tiny_config(), store)


def test_another_grid_is_refused_with_both_shapes(tiny_store: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config(data={"grid": [16, 16]})
    with pytest.raises(
        ValueError, match=r"has 8 x 16 cells, and `data.grid` says 16 x 16.*\[8, 16\]"
    ) as caught:
        check_store(open_store(tiny_store), config)
    assert str(tiny_store) in str(caught.value)


def test_a_channel_that_the_store_lacks_is_refused(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    without = replace(store, channels=tuple(name for name in store.channels if name != "so2"))
    with pytest.raises(ValueError, match="lacks the channel so2"):
        check_store(without, tiny_config())
