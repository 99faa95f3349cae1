"""Activation bytes and FLOP of a training pass on the CPU, counted by PyTorch's hooks and FLOP counter."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT, Terrain, build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_model(config: RunConfig) -> AirQualityViT:
    model = build_model(config, Terrain.flat(config.data.grid)).train()
    return model.to(DTYPES[config.deepspeed.precision])


def run(model: AirQualityViT, config: RunConfig) -> Tensor:
    batch, (rows, columns) = config.micro_batch, config.data.grid
    leads = 1 if config.model.lead_time == "encoder" else len(config.data.horizons)
    inputs = torch.randn(batch, len(config.data.inputs), rows, columns, dtype=model.norm.weight.dtype)
    weather = inputs.new_zeros(batch, leads, len(config.data.at_horizons), rows, columns)
    wind = torch.randn(batch, 2, rows, columns)
    output: Tensor = model(inputs, wind, torch.ones(batch, leads), [1] * batch, weather)
    return output


class SavedBytes:
    """Counter of saved tensors, each storage once, by the part of the model that is running."""

    def __init__(self, model: AirQualityViT) -> None:
        self.parts: defaultdict[str, int] = defaultdict(int)
        self._running = ["embedding and final norm"]
        # The storages are kept alive because an address may be reused.
        permanent = (tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
        self._seen = {storage.data_ptr(): storage for storage in permanent}
        for index, block in enumerate(model.blocks):
            self._follow(f"blocks.{index}", block)
        self._follow("head", model.head)
        if model.local_path is not None:
            self._follow("local path", model.local_path)

    def _follow(self, name: str, part: nn.Module) -> None:
        part.register_forward_pre_hook(lambda *_: self._running.append(name))
        part.register_forward_hook(lambda *_: self._running.pop() and None)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen[storage.data_ptr()] = storage
            self.parts[self._running[-1]] += storage.nbytes()
        return tensor


def saved_bytes(config: RunConfig) -> dict[str, int]:
    """Count the saved bytes of each part.

    A 16-bit layer norm saves mean and deviation in 16 bits on the CPU and in float32 on a GPU; the difference
    is added.
    """
    model = make_model(config)
    counter = SavedBytes(model)
    with saved_tensors_hooks(counter.keep, lambda tensor: tensor):
        assert run(model, config).requires_grad
    missing = 2 * (4 - model.norm.weight.element_size()) * config.micro_batch * config.tokens
    norms = {name: 2 if name.startswith("blocks.") else name[0] == "e" for name in counter.parts}
    return {name: count + norms[name] * missing for name, count in counter.parts.items()}


def product_flop(config: RunConfig) -> dict[str, int]:
    """Count the FLOP of matrix products; the counter knows neither kind of fused attention on the CPU."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run(make_model(config), config)
    counts: dict[str, Any] = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    blocks = sum(counts[f"AirQualityViT.blocks.{index}"] for index in range(config.model.depth))
    others = {"head": counts["AirQualityViT.head"]}
    if config.model.local_path:
        others["local path"] = counts["AirQualityViT.local_path"]
    return {"embedding": counts["Global"] - blocks - sum(others.values()), "blocks": blocks, **others}
