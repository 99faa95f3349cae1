"""Order of the tokens along the wind."""
