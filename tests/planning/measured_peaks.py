"""Take a step of several runs on the CPU, one after the other, and write the peak of the bytes they hold.

Usage: measured_peaks.py OUT.json CONFIG ...; writes {CONFIG: bytes}. The permanent state is that of the
optimizer; the rest is the maximum of PyTorch's allocations minus releases during a step.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from aqtopo.config import load_config
from aqtopo.distributed import process_group
from aqtopo.distributed.launch import read_launch
from aqtopo.model import Terrain, build_model
from aqtopo.training.engine import build_engine


def permanent_bytes(zero: Any) -> int:
    moments = [state[key] for state in zero.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    tensors = [*zero.bit16_groups_flat, *zero.single_partition_of_fp32_groups, *moments]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def peak_bytes(path: str, device: torch.device) -> int:
    config = load_config(path)
    engine = build_engine(config, build_model(config, Terrain.flat(config.data.grid)), 1, device)
    batch, (rows, columns) = config.micro_batch, config.data.grid
    fields = torch.randn(batch, 15, rows, columns), torch.randn(batch, 2, rows, columns)

    def step() -> None:
        output = engine(*fields, torch.ones(batch, 1), list(range(1, batch + 1)))
        engine.backward(output.square().mean())
        engine.step()

    step()  # allocates the moments
    permanent = permanent_bytes(engine.optimizer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    engine.destroy()
    return permanent + peak


def main() -> None:
    device = process_group.connect(read_launch())
    peaks = {path: peak_bytes(path, device) for path in sys.argv[2:]}
    Path(sys.argv[1]).write_text(json.dumps(peaks), encoding="utf-8")
    process_group.disconnect()


if __name__ == "__main__":
    main()
