"""Float32 numbers that stay as they are when a model is cast: kept as bit patterns.

Casting a model to bfloat16 casts its float buffers too, and 4.37 km of height with them to the nearest 32 m.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_bits(values: npt.NDArray[np.floating[Any]]) -> Tensor:
    """Int32 patterns of the values in float32, of their shape."""
    return torch.as_tensor(np.ascontiguousarray(values, np.float32).view(np.int32))


def from_bits(bits: Tensor) -> Tensor:
    """The float32 values again, a view."""
    return bits.view(torch.float32)
