"""Wind order of the tokens of a 128 x 256 grid, by number of regions."""

from typing import Any

import torch

from aqtopo.model.wind_order import sector_order_table
from aqtopo_kernels import wind_order
from benchmarks.measure import device, parse_arguments, report, time_paired

GRID, PATCH = (128, 256), 2


def measure(batch: int, regions: tuple[int, int], rounds: int) -> dict[str, Any]:
    """A row: seconds for a batch with this division into regions."""
    u, v = 5.0 * torch.randn(2, batch, *GRID, generator=torch.Generator().manual_seed(0)).to(device())
    region = GRID[0] // PATCH // regions[0], GRID[1] // PATCH // regions[1]
    table = torch.as_tensor(sector_order_table(region)).to(device())

    def work() -> torch.Tensor:
        return wind_order(u, v, table, regions=regions, patch=PATCH, calm_below=0.5)

    places = torch.arange(GRID[0] * GRID[1] // PATCH**2, device=device())
    assert torch.equal(work().sort(1).values, places.expand(batch, -1))
    return {
        "B": batch,
        "regions": f"{regions[0]} x {regions[1]}",
        "seconds": time_paired({"order": work}, rounds).median("order"),
    }


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    rounds = 3 if options.quick else 31
    rows = [measure(batch, regions, rounds) for batch in (1, 2) for regions in ((32, 32), (1, 1))]
    report("wind_order", rows, options)


if __name__ == "__main__":
    main()
