"""Local bias folded into wider heads, forward and backward, compared with a dense mask.

The results are compared first. Then, for 8 heads of 96 columns on a map of China with the elevation bias, the
benchmark measures time in paired rounds and memory above inputs and results. The columns `time_of_X` are the
ratio of times, and the contenders X are
- `without`: the same attention without the local bias;
- `dense`: PyTorch's attention with the sum of both biases as its mask, N x N numbers a head.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aqtopo.model.geometry import PatchCentres, Terrain, TokenGeometry
from aqtopo.model.locality import LocalityBias
from aqtopo_kernels import elevation_attention
from benchmarks.measure import MIB, device, parse_arguments, peak_bytes, report, time_paired

HEADS, WIDTH = 8, 96
SAME = 1e-3
"""Allowed difference of results, relative to the largest value."""


class MapInputs:
    """Inputs of attention on a map of China, with rows x (2 rows) tokens and a random wind.

    The local bias is centred on the upwind departure point in all heads.
    """

    def __init__(self, rows: int) -> None:
        self.tokens = 2 * rows**2
        latitude, longitude = np.linspace(18.0, 54.0, rows), np.linspace(73.0, 136.0, 2 * rows)
        terrain = Terrain(np.zeros((rows, 2 * rows), np.float32), latitude, longitude)
        centres = PatchCentres.from_terrain(terrain, 1)
        self.locality = LocalityBias(HEADS, 0, centres, upwind=True).to(device())
        generator = torch.Generator().manual_seed(rows)
        wind = 6.0 * torch.randn((1, 2, self.tokens), generator=generator).to(device())
        self.geometry = TokenGeometry(patch_wind=wind)
        shape = (1, HEADS, self.tokens, WIDTH)
        self.q, self.k, self.v, self.dout = (
            torch.randn(shape, generator=generator).to(device()) for _ in range(4)
        )
        self.elevation_m = 6000.0 * torch.rand((1, self.tokens), generator=generator).to(device())
        self.alpha = torch.full((1,), 2.0, device=device())

    def folded(self, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        """Both biases, the local one folded into wider heads as in the model."""

        def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
            return elevation_attention(q, k, v, self.elevation_m, alpha, scale=scale)

        return self.locality.attend(attention, q, k, v, None, self.geometry)

    def without(self, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        """The elevation bias alone."""
        return elevation_attention(q, k, v, self.elevation_m, alpha)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        """Both biases as a dense mask."""
        query_columns, key_columns = self.locality.columns(None, self.geometry, torch.float32)
        z_BN = self.elevation_m
        rise_BNN = (z_BN[:, None, :] - z_BN[:, :, None]).clamp_min(0.0) / 1000.0
        bias_BHNN = query_columns @ key_columns.transpose(-1, -2) - alpha * rise_BNN[:, None]
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHNN)

    def differentiate(self, contender: str) -> tuple[Tensor, ...]:
        """Return the output and the gradients of q, k, v, alpha and, if it is used, the local bias."""
        leaves = [x.detach().requires_grad_() for x in (self.q, self.k, self.v, self.alpha)]
        out: Tensor = getattr(self, contender)(*leaves)
        learnt = [] if contender == "without" else list(self.locality.parameters())
        return out.detach(), *torch.autograd.grad(out, [*leaves, *learnt], self.dout)


def largest_difference(map_: MapInputs) -> float:
    """Return the largest difference between folded and dense results, relative to their largest value."""
    pairs = zip(map_.differentiate("folded"), map_.differentiate("dense"), strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def measure(rows: int, rounds: int, contenders: tuple[str, ...]) -> dict[str, Any]:
    """Row of one size."""
    map_ = MapInputs(rows)
    work = {name: lambda name=name: map_.differentiate(name) for name in contenders}
    timed = time_paired(work, rounds)
    mib = {name: peak_bytes(run) / MIB for name, run in work.items()}
    found: dict[str, Any] = {"N": map_.tokens, "seconds": timed.median("folded"), "mib": mib["folded"]}
    for name in contenders[1:]:
        found |= {f"time_of_{name}": timed.ratio("folded", name), f"{name}_mib": mib[name]}
    return found


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    difference = largest_difference(MapInputs(16))
    if difference > SAME:
        raise SystemExit(f"Folded and dense results differ by {difference}; at most {SAME} is allowed.")
    sizes = [(16, 1)] if options.quick else [(32, 5), (64, 3)]
    rows = [measure(*size, ("folded", "without", "dense")) for size in sizes]
    report("local_bias", [{"N": 512, "largest_difference": difference}, *rows], options)


if __name__ == "__main__":
    main()
