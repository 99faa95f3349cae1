"""Operators that aqtopo adds to a vision transformer: elevation attention, wind order and wind gather.

One folder per operator: `reference.py` is the formula in plain PyTorch, `op.py` the public function, `cpu.py`
and `kernel.py` (launched by `launch.py`) the implementations; `backend_for` selects one. This package does
not import aqtopo.
"""

from aqtopo_kernels.backend import Backend, backend_for, better_than_torch
from aqtopo_kernels.elevation_attention.op import elevation_attention
from aqtopo_kernels.wind_gather.op import wind_gather, wind_scatter
from aqtopo_kernels.wind_order.op import wind_order, wind_sector

__all__ = [
    "Backend",
    "backend_for",
    "better_than_torch",
    "elevation_attention",
    "wind_gather",
    "wind_order",
    "wind_scatter",
    "wind_sector",
]
