"""Train step of the published model, by part: forward, backward and AdamW, with all physics on.

One process at 128 x 256 cells, with one sample per step. On a GPU there are also rows in bfloat16, and
columns for TFLOP/s and their share of the vendor's peak. `benchmarks.ddp` compares two processes with
PyTorch's DDP.
"""

import time
from collections import defaultdict
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from aqtopo.config import ModelConfig
from aqtopo.model import AirQualityViT, Terrain
from aqtopo.training.step import squared_error
from benchmarks.measure import (
    GEMM,
    device,
    gpu_name,
    multiply_matrices,
    parse_arguments,
    peak_bytes,
    report,
    synchronize,
    time_paired,
)
from benchmarks.peaks import arithmetic_columns

SEED = 7


def make_terrain(grid: tuple[int, int]) -> Terrain:
    """Return random terrain with a realistic roughness."""
    generator = torch.Generator().manual_seed(1)
    coarse = 5000.0 * torch.rand((1, 1, grid[0] // 8, grid[1] // 8), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=grid, mode="bilinear")[0, 0]
    latitude, longitude = torch.linspace(17.0, 49.0, grid[0]), torch.linspace(73.0, 136.75, grid[1])
    return Terrain(smooth.numpy(), latitude.numpy(), longitude.numpy())


def make_batch(grid: tuple[int, int], batch: int, leads: int, where: torch.device) -> list[Tensor]:
    """Return inputs, wind [m/s], lead times [h] and targets."""
    generator = torch.Generator().manual_seed(2)
    inputs, wind = (torch.randn((batch, n, *grid), generator=generator) for n in (15, 2))
    targets = torch.randn((batch, leads, 6, *grid), generator=generator)
    hours = torch.tensor([12.0, 24.0, 48.0, 96.0][:leads]).expand(batch, -1)
    return [x.to(where) for x in (inputs, 5.0 * wind, hours, targets)]


class Clock:
    """Clock that sums the seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Add the time since the last mark to a part."""
        synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


class PartClock(Clock):
    """Clock of the parts of a model, forward and backward, with hooks on their inputs and outputs."""

    def __init__(self, model: AirQualityViT) -> None:
        super().__init__()
        names = ["embedding", "block 0", *["further blocks"] * (len(model.blocks) - 1), "head"]
        for part, (before, after) in zip([*model.blocks, model.head], pairwise(names), strict=True):
            part.register_forward_pre_hook(partial(self._enter, before, after))
        model.register_forward_hook(partial(self._leave, names[-1], "loss"))

    def _enter(self, before: str, after: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._boundary(before, after, inputs[0])

    def _leave(self, before: str, after: str, _: nn.Module, __: object, output: Tensor) -> None:
        self._boundary(before, after, output)

    def _boundary(self, before: str, after: str, x: Tensor) -> None:
        self.mark(f"{before} forward")
        x.register_hook(lambda _: self.mark(f"{after} backward"))


def measure_step(
    grid: tuple[int, int], steps: int, dtype: torch.dtype, product: int, **model: Any
) -> list[dict[str, Any]]:
    """Row of the median step of one process, whole and by part, and of a matrix product."""
    network = AirQualityViT(
        ModelConfig.model_validate(model), make_terrain(grid), variables=15, targets=6
    ).to(device(), dtype)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    *fields, targets = make_batch(grid, 1, 1, device())
    valid = torch.ones_like(targets, dtype=torch.bool)
    parts = PartClock(network)

    def step() -> None:
        parts.mark("between steps")
        loss = squared_error(network(*fields, [SEED]), targets, valid) / targets.numel()
        parts.mark("loss forward")
        loss.backward()
        parts.mark("embedding backward")
        optimizer.step()
        optimizer.zero_grad()
        parts.mark("AdamW")

    rows = []
    memory = peak_bytes(step)  # the first step, which also allocates the optimizer's state
    for _ in range(steps):
        parts.seconds.clear()
        step()
        seconds = dict(parts.seconds)
        seconds.pop("between steps", None)
        rows.append({"step_seconds": sum(seconds.values())} | seconds)
    row = sorted(rows, key=lambda row: row["step_seconds"])[len(rows) // 2]
    flop_s = step_flop(network.config, grid) / row["step_seconds"]
    row |= {f"of_{GEMM[dtype]}": flop_s / _gemm_flop_s(product, dtype)} | arithmetic_columns(
        gpu_name(), dtype, flop_s
    )
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    parameters = sum(p.numel() for p in network.parameters())
    facts = {"grid": f"{grid[0]} x {grid[1]}", "million_parameters": parameters / 1e6}
    return [facts | {"gib_peak": (memory + weights) / 2**30} | row]


def step_flop(config: ModelConfig, grid: tuple[int, int]) -> float:
    """FLOP of the blocks' matrix products, forward and backward, for one sample; the rest is below 1%."""
    tokens = grid[0] // config.patch * (grid[1] // config.patch)
    projections, attention = 72.0 * tokens * config.dim**2, 14.0 * tokens**2 * config.dim
    return config.depth * (projections + attention)


def _gemm_flop_s(size: int, dtype: torch.dtype) -> float:
    work, flop = multiply_matrices(size, dtype)
    return flop / time_paired({"product": work}, 5).median("product")


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    dtypes = list(GEMM) if device().type == "cuda" else [torch.float32]
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        if options.quick:
            rows += measure_step((16, 32), 1, dtype, 1024, dim=96, heads=1, depth=2, regions=[4, 4])
        else:
            rows += measure_step((128, 256), 2, dtype, 4096)
    report("train_step", rows, options)


if __name__ == "__main__":
    main()
