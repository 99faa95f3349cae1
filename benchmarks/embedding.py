"""Collapsed embedding compared with ClimaX's own, forward and backward.

There are 15 variables, 8192 tokens and 768 columns. ClimaX's plain form makes a token of every variable and
patch, and aggregates them with nn.MultiheadAttention.
"""

from typing import Any

import torch
from torch import Tensor

from aqtopo.config import ModelConfig
from aqtopo.model import AirQualityViT, Terrain
from benchmarks.measure import MIB, Work, device, parse_arguments, peak_bytes, report, time_paired
from tests.model.plain_climax import plain_embedding

VARIABLES = 15


def make_model(grid: tuple[int, int]) -> AirQualityViT:
    """Model of minimal depth with the reference run's embedding and enlarged first weights."""
    config = ModelConfig(depth=1, decoder_depth=0, wind_order=False)
    model = AirQualityViT(config, Terrain.flat(grid), variables=VARIABLES, targets=6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.to(device())


def measure(grid: tuple[int, int], batch: int, rounds: int) -> dict[str, Any]:
    """Row of time and memory, after a check that both forms agree."""
    model = make_model(grid)
    fields = torch.randn(batch, VARIABLES, *grid, generator=torch.Generator().manual_seed(1)).to(device())
    names = ("token_embeds", "var_embed", "var_query", "var_agg")
    weights = [p for name, p in model.named_parameters() if name.startswith(names)]

    def differentiated(tokens: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(tokens.square().mean(), weights, materialize_grads=True, allow_unused=True)

    with torch.no_grad():
        difference = (model.embed(fields) - plain_embedding(model, fields)).abs().max()
        assert difference <= 2e-6 * model.embed(fields).abs().max(), f"The two forms differ by {difference}."
    contenders: dict[str, Work] = {
        "collapsed": lambda: differentiated(model.embed(fields)),
        "plain": lambda: differentiated(plain_embedding(model, fields)),
    }
    timed = time_paired(contenders, rounds)
    mib = {name: peak_bytes(work) / MIB for name, work in contenders.items()}
    return {
        "B": batch,
        "N": grid[0] * grid[1] // 4,
        "seconds": timed.median("collapsed"),
        "plain_seconds": timed.median("plain"),
        "times_faster": 1 / timed.ratio("collapsed", "plain"),
        "mib": mib["collapsed"],
        "plain_mib": mib["plain"],
        "memory_of_plain": mib["collapsed"] / mib["plain"],
    }


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    if options.quick:
        rows = [measure((16, 32), 1, 1)]
    else:
        rows = [measure((128, 256), batch, rounds) for batch, rounds in ((1, 2), (2, 1))]
    report("embedding", rows, options)


if __name__ == "__main__":
    main()
