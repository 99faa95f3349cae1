"""Gather into wind order and its inverse, forward and backward, at 8192 tokens of 768 columns."""

from typing import Any

import torch
from torch import Tensor

from aqtopo_kernels import wind_gather, wind_scatter
from aqtopo_kernels.wind_gather.reference import wind_gather_reference, wind_scatter_reference
from benchmarks.measure import MIB, device, gpu_name, parse_arguments, peak_bytes, report, time_paired
from benchmarks.peaks import memory_columns

MOVES = {"gather": 5, "scatter": 4}
"""Passes over memory of an operation, forward and backward. The gather also reads `add`."""


def torch_gather(x: Tensor, order: Tensor) -> Tensor:
    """Gather with `torch.gather`."""
    return x.gather(1, order.unsqueeze(-1).expand_as(x))


def measure(batch: int, tokens: int, width: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the gather with an addition and of the scatter."""
    generator = torch.Generator().manual_seed(0)
    x, add, grad = (torch.randn((batch, tokens, width), generator=generator).to(device()) for _ in range(3))
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)]).to(device())
    x.requires_grad_()
    add.requires_grad_()
    assert torch.equal(wind_gather(x, order, add), wind_gather_reference(x, order, add))
    assert torch.equal(wind_scatter(x, order), wind_scatter_reference(x, order))
    inverse = order.argsort(1)
    contenders = {
        "gather": lambda: torch.autograd.grad(wind_gather(x, order, add), (x, add), grad),
        "gather_by_torch": lambda: torch.autograd.grad(torch_gather(x, order) + add, (x, add), grad),
        "scatter": lambda: torch.autograd.grad(wind_scatter(x, order), x, grad),
        "scatter_by_torch": lambda: torch.autograd.grad(torch_gather(x, inverse), x, grad),
    }
    for name in MOVES:
        pairs = zip(contenders[name](), contenders[f"{name}_by_torch"](), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    timed = time_paired(contenders, rounds)
    once = x.numel() * x.element_size()
    bytes_s = {name: moves * once / timed.median(name) for name, moves in MOVES.items()}
    return [
        {
            "op": name,
            "B": batch,
            "N": tokens,
            "D": width,
            "seconds": timed.median(name),
            "time_of_torch": timed.ratio(name, f"{name}_by_torch"),
            "gb_s": bytes_s[name] / 1e9,
            "mib": peak_bytes(contenders[name]) / MIB,
        }
        | memory_columns(gpu_name(), bytes_s[name])
        for name in MOVES
    ]


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    sizes = [(1, 1024, 64, 3)] if options.quick else [(1, 8192, 768, 15), (2, 8192, 768, 15)]
    report("wind_gather", [row for size in sizes for row in measure(*size)], options)


if __name__ == "__main__":
    main()
