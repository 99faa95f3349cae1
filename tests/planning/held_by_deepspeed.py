"""Build the engine of a config on each rank, take one step, and write the bytes it holds.

Usage: held_by_deepspeed.py CONFIG OUT.json, with the environment of a torch launcher.
"""

import json
import sys
from pathlib import Path

import torch

from aqtopo.config import load_config
from aqtopo.distributed import process_group
from aqtopo.distributed.launch import read_launch
from aqtopo.model import Terrain, build_model
from aqtopo.training.engine import build_engine


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def main() -> None:
    config = load_config(sys.argv[1])
    launch = read_launch()
    device = process_group.connect(launch)
    model = build_model(config, Terrain.flat(config.data.grid))
    engine = build_engine(config, model, launch.size, device)
    rows, columns = config.data.grid
    inputs = torch.zeros(1, len(config.data.variables), rows, columns)
    output = engine(inputs, torch.zeros(1, 2, rows, columns), torch.ones(1, 1), None)
    engine.backward(output.float().square().mean())
    optimizer = engine.optimizer
    held = {
        "parameters": _bytes(optimizer.bit16_groups_flat),
        "gradients": sum(
            part.numel() * part.element_size()
            for parts in optimizer.averaged_gradients.values()
            for part in parts
        ),
    }
    engine.step()
    held["master_weights"] = _bytes(optimizer.single_partition_of_fp32_groups)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    held["moments"] = _bytes(moments)
    Path(sys.argv[2]).write_text(json.dumps(held), encoding="utf-8")
    process_group.barrier()  # a rank that closes its connections first can abort the other
    process_group.disconnect()


if __name__ == "__main__":
    main()
