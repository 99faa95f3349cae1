"""Saved training states and trained runs."""

from aqtopo.checkpoint.tags import Tag, best_tag, find_tag, last_tag, list_tags
from aqtopo.checkpoint.weights import load_weights

__all__ = ["Tag", "best_tag", "find_tag", "last_tag", "list_tags", "load_weights"]
