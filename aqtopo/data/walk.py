"""Walks over a store's hours shard by shard, and says how far a long walk is."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from aqtopo.data.schema import HOURS_PER_SHARD
from aqtopo.data.store import Store

Report = Callable[[str, int, int], None]
"""Told what is being counted, how many are done and how many there are."""


def in_silence(what: str, done: int, total: int) -> None:
    """A `Report` that says nothing."""


def spans(store: Store, years: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of time indices that cover calendar years, none of them across two shards."""
    for year in sorted(set(years)):
        start, end = np.searchsorted(
            store.times, np.array([f"{year}-01-01", f"{year + 1}-01-01"], "datetime64[h]")
        )
        cuts = range(int(start) // HOURS_PER_SHARD * HOURS_PER_SHARD, int(end), HOURS_PER_SHARD)
        yield from ((max(cut, int(start)), min(cut + HOURS_PER_SHARD, int(end))) for cut in cuts)
