"""Timings and memory of the operations, the embedding and a whole train step: `python -m benchmarks.NAME`."""
