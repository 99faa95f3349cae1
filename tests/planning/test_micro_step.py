from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig, load_config
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.model.locality import EXTRA_COLUMNS
from aqtopo.planning import make_plan
from aqtopo.planning.micro_step import ActivationBytes, MicroStepFlop, activation_bytes, count_flop

TinyConfig = Callable[..., RunConfig]


def meta_model(config: RunConfig) -> AirQualityViT:
    with torch.device("meta"):
        return build_model(config, Terrain.flat(config.data.grid))


def planned(config: RunConfig) -> ActivationBytes:
    return activation_bytes(meta_model(config), config)


def planned_flop(config: RunConfig) -> MicroStepFlop:
    return count_flop(meta_model(config), config)


def saved_by_a_real_pass(config: RunConfig) -> int:
    """Return the bytes that autograd saves in a training pass on the CPU, each storage once."""
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
def test_activations_match_a_pass_on_the_cpu(
    tiny_config: TinyConfig, lead_time: str, dim: int, grid: list[int], dropout: float
) -> None:
    model = {"lead_time": lead_time, "dim": dim, "dropout": dropout}
    config = tiny_config(model=model, data={"grid": grid, "store": "none.zarr"})
    assert planned(config).plain == pytest.approx(saved_by_a_real_pass(config), rel=0.02)


def test_parts_are_the_blocks_the_head_and_the_rest(tiny_config: TinyConfig) -> None:
    estimate = planned(tiny_config(model={"depth": 3}))
    assert set(estimate.parts) == {"embedding and final norm", "blocks.0", "blocks.1", "blocks.2", "head"}
    assert sum(estimate.parts.values()) == estimate.plain
    assert estimate.parts["blocks.1"] == estimate.parts["blocks.2"]


def test_checkpointing_saves_block_inputs_and_one_block(tiny_config: TinyConfig) -> None:
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


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_flop_match_a_real_pass_flop(tiny_config: TinyConfig, lead_time: str) -> None:
    config = tiny_config(model={"lead_time": lead_time, "elevation_bias": False, "attention": "torch"})
    model = build_model(config, Terrain.flat(config.data.grid)).train()
    batch, (rows, columns) = config.micro_batch, config.data.grid
    leads = 1 if lead_time == "encoder" else 4
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's flash attention
        output = model(
            torch.randn(batch, 15, rows, columns),
            torch.randn(batch, 2, rows, columns),
            torch.ones(batch, leads),
            None,
        )
        forward = counter.get_total_flops()
        output.square().mean().backward()
    flop = planned_flop(config)
    assert flop.forward == forward
    # This attention saves its scores, a flash kernel recomputes them; the inputs need no gradient.
    again = 0.5 * flop.attention
    backward = counter.get_total_flops() - forward + again
    assert backward <= flop.backward <= backward + flop.products["embedding"]


def test_flop_of_blocks_match_their_matrices() -> None:
    config = load_config("ds_configs/lumi_400gpu.json")
    flop = make_plan(config).flop
    tokens, dim = 2 * 8192, 768
    assert flop.products["blocks"] == 6 * 2 * tokens * 12 * dim**2
    assert flop.attention == 6 * 4 * 2 * 8192**2 * dim


def test_checkpointing_recomputes_the_blocks(tiny_config: TinyConfig) -> None:
    plain = planned_flop(tiny_config())
    again = planned_flop(tiny_config(model={"gradient_checkpointing": True}))
    assert again.backward - plain.backward == plain.products["blocks"] + plain.attention


def test_the_local_bias_widens_heads_and_uses_float32() -> None:
    plain, local = (
        make_plan(load_config("ds_configs/lumi_400gpu.json", [f"model.local_bias={form}"])).flop
        for form in ("false", "origin")
    )
    assert plain.float32_attention == 0
    assert local.float32_attention == plain.attention // 6 * (96 + EXTRA_COLUMNS) // 96
    assert local.attention == plain.attention // 6 * 5 + local.float32_attention
    assert plain.backward_s(4.0, 1.0) == plain.backward / 4.0
    assert local.forward_s(4.0, 1.0) == pytest.approx(local.forward / 4.0 + 0.75 * local.float32_attention)
