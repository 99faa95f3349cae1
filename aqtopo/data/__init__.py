"""Data: the store and its statistics, which samples a run takes in which order, and the loader."""

from aqtopo.data.statistics import Normalization, normalization_for, write_statistics
from aqtopo.data.store import Store, open_store
from aqtopo.data.write import write_store

__all__ = ["Normalization", "Store", "normalization_for", "open_store", "write_statistics", "write_store"]
