"""Attention with a bias against keys that lie higher than the query."""
