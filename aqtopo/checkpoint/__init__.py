"""Saved training states."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqtopo.checkpoint.tags import Tag, best_tag, find_tag, last_tag, list_tags
    from aqtopo.checkpoint.weights import load_weights

__all__ = ["Tag", "best_tag", "find_tag", "last_tag", "list_tags", "load_weights"]

_MODULE_OF = {
    "Tag": "tags",
    "best_tag": "tags",
    "find_tag": "tags",
    "last_tag": "tags",
    "list_tags": "tags",
    "load_weights": "weights",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name at first use: together they load PyTorch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
