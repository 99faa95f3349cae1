"""Timings and memory of the operations, the embedding and a whole train step: `python -m benchmarks.NAME`."""

import os

if "OMP_WAIT_POLICY" not in os.environ:  # as the command `aqtopo` does
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
