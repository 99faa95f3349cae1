"""Data: the store and its statistics, the selection and order of samples, and the loader."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqtopo.data.descriptions import describe_variable
    from aqtopo.data.statistics import Normalization, normalization_for, write_statistics
    from aqtopo.data.store import Store, open_store
    from aqtopo.data.write import write_store

__all__ = [
    "Normalization",
    "Store",
    "describe_variable",
    "normalization_for",
    "open_store",
    "write_statistics",
    "write_store",
]

_MODULE_OF = {
    "Normalization": "statistics",
    "Store": "store",
    "describe_variable": "descriptions",
    "normalization_for": "statistics",
    "open_store": "store",
    "write_statistics": "statistics",
    "write_store": "write",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name at first use: together they load pandas, xarray and zarr."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
