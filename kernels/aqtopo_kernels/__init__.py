"""The two operations aqtopo adds to a vision transformer: elevation attention and the wind gather.

One folder an operation: `reference.py` is the formula in plain PyTorch, `op.py` what callers use. Nothing
here knows of aqtopo: tensors in, tensors out.
"""

from aqtopo_kernels.elevation_attention.op import elevation_attention
from aqtopo_kernels.wind_gather.op import wind_gather, wind_scatter

__all__ = ["elevation_attention", "wind_gather", "wind_scatter"]
