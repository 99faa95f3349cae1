"""Peak rates of GPUs from the vendors' data sheets, and the share that a benchmark reaches."""

import torch

from aqtopo.planning.node_types import NODE_TYPES


def _peaks(name: str) -> dict[str, float]:
    """Return the peaks of an accelerator that `aqtopo plan` knows."""
    return {**NODE_TYPES[name].flops, "memory": NODE_TYPES[name].memory_rate}


PEAKS: dict[str, dict[str, float]] = {
    "MI250X": _peaks("mi250x"),  # a device is one of two dies
    "MI300X": _peaks("mi300x"),
    "A100-SXM4-40GB": _peaks("a100") | {"memory": 1.555e12},  # NVIDIA's data sheets, as below
    "A100-SXM4-80GB": _peaks("a100"),
    "H100 PCIe": {"fp32": 51e12, "bf16": 756e12, "memory": 2e12},
    "H100 NVL": {"fp32": 60e12, "bf16": 835e12, "memory": 3.9e12},
    "H100 80GB HBM3": _peaks("h100"),
    "H200": _peaks("h200"),
}
"""FLOP/s by dtype and memory bytes/s; the key is a part of PyTorch's name of the device.

bf16 is the rate of the matrix units, without sparsity. fp32 is that of the matrix units on AMD, and of the
vector units on NVIDIA, because TF32 is not float32.
"""

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def arithmetic_columns(gpu: str | None, dtype: torch.dtype, flop_s: float) -> dict[str, object]:
    """Columns `dtype`, `tflop_s` and `of_peak`; none on a CPU."""
    if gpu is None:
        return {}
    kind = NAMES[dtype]
    return {"dtype": kind, "tflop_s": flop_s / 1e12, "of_peak": _share(gpu, kind, flop_s)}


def memory_columns(gpu: str | None, bytes_s: float) -> dict[str, object]:
    """Column `of_peak`, the share of the memory's peak; none on a CPU."""
    return {} if gpu is None else {"of_peak": _share(gpu, "memory", bytes_s)}


def _share(gpu: str, kind: str, rate: float) -> float | str:
    found = (peaks[kind] for part, peaks in PEAKS.items() if part in gpu)
    peak = next(found, None)
    return f"no peak of {gpu} in benchmarks/peaks.py; add it there" if peak is None else rate / peak
