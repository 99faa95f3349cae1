"""Count the bytes of DeepSpeed's collectives in a step, on forked ranks.

Usage: counted_traffic.py CONFIG FOLDER RANKS ...; writes rank 0's {kind: [bytes of each call, ...]} to
FOLDER/<ranks>.json.
"""

import json
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  import before fork
import torch
import torch.distributed as dist

from aqtopo.config import load_config
from aqtopo.distributed import process_group
from aqtopo.distributed.launch import Launch
from aqtopo.model import Terrain, build_model
from aqtopo.training.engine import build_engine

KINDS = {
    "all_reduce": "all-reduce",
    "reduce": "reduce",
    "all_gather": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "broadcast": "broadcast",
}


def record_calls(counted: dict[str, list[int]]) -> None:
    """Wrap the collectives of `KINDS`: append the bytes of the first argument of each call to `counted`."""

    def counting(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            named = (kwargs[name] for name in ("output_tensor", "tensor_list", "tensor") if name in kwargs)
            first = args[0] if args else next(named)
            tensors = first if isinstance(first, list) else [first]
            counted[kind].append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
            return function(*args, **kwargs)

        return call

    for name, kind in KINDS.items():
        setattr(dist, name, counting(getattr(dist, name), kind))


def run_rank(path: str, rank: int, world: int, port: int, folder: Path) -> None:
    counted: dict[str, list[int]] = defaultdict(list)
    record_calls(counted)
    config = load_config(path)
    device = process_group.connect(Launch("torch", rank, rank, world, world, "127.0.0.1", port))
    engine = build_engine(config, build_model(config, Terrain.flat(config.data.grid)), world, device)
    rows, columns = config.data.grid
    counted.clear()
    for micro_step in range(config.accumulation):
        engine.set_gradient_accumulation_boundary(micro_step == config.accumulation - 1)
        output = engine(
            torch.zeros(1, 15, rows, columns), torch.zeros(1, 2, rows, columns), torch.ones(1, 1), None
        )
        engine.backward(output.square().mean())
        engine.step()
    if rank == 0:
        (folder / f"{world}.json").write_text(json.dumps(counted), encoding="utf-8")
    process_group.disconnect()


def main() -> None:
    torch.set_num_threads(1)
    for world in map(int, sys.argv[3:]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                run_rank(sys.argv[1], rank, world, port, Path(sys.argv[2]))
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(codes), codes


if __name__ == "__main__":
    main()
