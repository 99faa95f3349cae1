"""Peak rates of GPUs from the vendors' data sheets, and the share that a benchmark reaches."""

import torch

from aqtopo.planning.scaling import NODE_TYPES

_MI250X, _H100 = NODE_TYPES["mi250x"], NODE_TYPES["h100"]
PEAKS: dict[str, dict[str, float]] = {
    # A device is one of two dies. Source: aqtopo/planning/scaling.py.
    "MI250X": _MI250X.flops | {"memory": _MI250X.memory_rate},
    "MI300X": {"fp32": 163.4e12, "bf16": 1307.4e12, "memory": 5.3e12},  # AMD's data sheet
    "A100-SXM4-40GB": {"fp32": 19.5e12, "bf16": 312e12, "memory": 1.555e12},  # NVIDIA's data sheets, as below
    "A100-SXM4-80GB": {"fp32": 19.5e12, "bf16": 312e12, "memory": 2.039e12},
    "H100 PCIe": {"fp32": 51e12, "bf16": 756e12, "memory": 2e12},
    "H100 NVL": {"fp32": 60e12, "bf16": 835e12, "memory": 3.9e12},
    "H100 80GB HBM3": _H100.flops | {"memory": _H100.memory_rate},
    "H200": _H100.flops | {"memory": 4.8e12},
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
