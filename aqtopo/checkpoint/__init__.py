"""Saved training states and trained runs."""

from aqtopo.checkpoint.tags import Tag, best_tag, find_tag, last_tag, list_tags
from aqtopo.checkpoint.weights import LoadedRun, load_run, load_weights

__all__ = ["LoadedRun", "Tag", "best_tag", "find_tag", "last_tag", "list_tags", "load_run", "load_weights"]
