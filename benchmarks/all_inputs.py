"""Train step at 128 x 256 cells with all inputs and the local path, beside the published step.

One process, one sample a step: forward, backward and AdamW of the published model, then with local time and
insolation, the fields of 6, 12 and 24 h before and the weather at the valid time as inputs, then with the
local path too. Seconds and ratios are of processor time, since other work shares the machine. Inputs and
weights are random; that the outputs and gradients are finite is checked in the same run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from aqtopo.config import RunConfig, load_config
from aqtopo.model.vit import build_model
from aqtopo.training.step import squared_error
from benchmarks.measure import parse_arguments, peak_bytes, report
from benchmarks.train_step import make_terrain

CONFIG = Path(__file__).parents[1] / "ds_configs" / "lumi_400gpu.json"
INPUTS = (
    'data.forcings=["cos_local_time","sin_local_time","insolation"]',
    "data.history_hours=[6,12,24]",
    'data.weather_at_horizons=["u","v","temp","rh","psfc"]',
)
CONTENDERS = {
    "published": (),
    "all inputs": INPUTS,
    "all inputs, local path": (*INPUTS, "model.local_path=true"),
}
QUICK = ("data.grid=[16,32]", "model.dim=96", "model.heads=1", "model.depth=2", "model.regions=[4,4]")


def make_step(config: RunConfig) -> tuple[Callable[[], None], dict[str, Any]]:
    """Return a train step of one sample and one horizon, and facts about the model."""
    terrain = make_terrain((config.data.grid[0], config.data.grid[1]))
    model = build_model(config, terrain).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(2)
    ahead = len(config.data.at_horizons)
    shapes = ((1, model.variables - ahead), (1, 2), (1, 1, ahead), (1, 1, model.targets))
    inputs, wind, weather, targets = (
        torch.randn((*shape, *model.grid), generator=generator) for shape in shapes
    )
    valid, hours = torch.ones_like(targets, dtype=torch.bool), torch.tensor([[24.0]])

    def step() -> None:
        loss = squared_error(model(inputs, wind, hours, [7], weather), targets, valid) / targets.numel()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return step, {"inputs": model.variables, "million_parameters": parameters / 1e6}


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    rounds, smaller = (1, QUICK) if options.quick else (3, ())
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    rows: dict[str, dict[str, Any]] = {}
    made = {name: make_step(load_config(CONFIG, [*smaller, *own])) for name, own in CONTENDERS.items()}
    for name, (step, facts) in made.items():
        rows[name] = {"model": name, **facts, "gib_peak": peak_bytes(step) / 2**30}
    for _ in range(rounds):
        for name, (step, _) in made.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    for name, row in rows.items():
        pairs = zip(seconds[name], seconds["published"], strict=True)
        row |= {
            "processor_seconds": median(seconds[name]),
            "of_published": median(one / other for one, other in pairs),
        }
    report("all_inputs", list(rows.values()), options)


if __name__ == "__main__":
    main()
