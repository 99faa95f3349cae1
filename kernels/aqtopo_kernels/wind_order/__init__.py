"""The order of the tokens along the wind."""
