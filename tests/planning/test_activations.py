from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from aqtopo.config import RunConfig
from aqtopo.model import Terrain, build_model
from aqtopo.planning.activations import ActivationBytes, activation_bytes

TinyConfig = Callable[..., RunConfig]


def planned(config: RunConfig) -> ActivationBytes:
    with torch.device("meta"):
        model = build_model(config, Terrain.flat(config.data.grid))
    return activation_bytes(model, config)


def kept_by_a_real_pass(config: RunConfig) -> int:
    """Bytes that autograd keeps in a training pass on the CPU, each storage once."""
    model = build_model(config, Terrain.flat(config.data.grid)).train()
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch, (rows, columns) = config.micro_batch, config.data.grid
    leads = 1 if config.model.lead_time == "encoder" else len(config.data.horizons)
    inputs = torch.randn(batch, len(config.data.variables), rows, columns)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(inputs, torch.randn(batch, 2, rows, columns), torch.ones(batch, leads), [1] * batch)
    assert output.requires_grad
    for tensor in (*model.parameters(), *model.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
@pytest.mark.parametrize(("dim", "grid"), [(32, [8, 16]), (64, [16, 32])])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_estimate_is_what_a_pass_on_the_cpu_keeps(
    tiny_config: TinyConfig, lead_time: str, dim: int, grid: list[int], dropout: float
) -> None:
    model = {"lead_time": lead_time, "dim": dim, "dropout": dropout}
    config = tiny_config(model=model, data={"grid": grid, "store": "none.zarr"})
    assert planned(config).plain == pytest.approx(kept_by_a_real_pass(config), rel=0.02)


def test_parts_are_the_blocks_the_head_and_the_rest(tiny_config: TinyConfig) -> None:
    estimate = planned(tiny_config(model={"depth": 3}))
    assert set(estimate.parts) == {"embedding and final norm", "blocks.0", "blocks.1", "blocks.2", "head"}
    assert sum(estimate.parts.values()) == estimate.plain
    assert estimate.parts["blocks.1"] == estimate.parts["blocks.2"]


def test_checkpointing_keeps_block_inputs_and_one_block(tiny_config: TinyConfig) -> None:
    config = tiny_config(model={"depth": 6})
    estimate = planned(config)
    blocks = [count for name, count in estimate.parts.items() if name.startswith("blocks.")]
    inputs = 6 * config.micro_batch * config.tokens * 32 * 4
    assert estimate.block_inputs == inputs
    assert estimate.checkpointed == estimate.plain - sum(blocks) + max(blocks) + inputs
    assert estimate.checkpointed < estimate.plain


def test_activations_grow_with_the_micro_batch(tiny_config: TinyConfig) -> None:
    def plain(micro_batch: int) -> int:
        config = tiny_config(deepspeed={"train_micro_batch_size_per_gpu": micro_batch})
        return planned(config).plain

    assert plain(8) / plain(4) == pytest.approx(2.0, rel=0.05)


def test_half_precision_halves_the_blocks(tiny_config: TinyConfig) -> None:
    full, half = planned(tiny_config()), planned(tiny_config(deepspeed={"bf16": {"enabled": True}}))
    assert half.parts["blocks.1"] / full.parts["blocks.1"] == pytest.approx(0.5, abs=0.05)


def test_the_estimate_does_not_depend_on_earlier_estimates(tiny_config: TinyConfig) -> None:
    assert planned(tiny_config()) == planned(tiny_config())
