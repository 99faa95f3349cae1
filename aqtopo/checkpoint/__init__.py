"""Saved training states."""

from aqtopo.checkpoint.tags import Tag, best_tag, find_tag, last_tag, list_tags

__all__ = ["Tag", "best_tag", "find_tag", "last_tag", "list_tags"]
