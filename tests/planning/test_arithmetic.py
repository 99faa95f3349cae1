from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig, load_config
from aqtopo.model import Terrain, build_model
from aqtopo.model.locality import EXTRA_COLUMNS
from aqtopo.planning import make_plan
from aqtopo.planning.arithmetic import Arithmetic, count_arithmetic

TinyConfig = Callable[..., RunConfig]


def planned(config: RunConfig) -> Arithmetic:
    with torch.device("meta"):
        model = build_model(config, Terrain.flat(config.data.grid))
    return count_arithmetic(model, config)


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_a_real_pass_computes_what_is_planned(tiny_config: TinyConfig, lead_time: str) -> None:
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
    arithmetic = planned(config)
    assert arithmetic.forward == forward
    # This attention keeps its scores, a flash kernel makes them again; nobody needs the inputs' gradient.
    again = 0.5 * arithmetic.attention
    backward = counter.get_total_flops() - forward + again
    assert backward <= arithmetic.backward <= backward + arithmetic.products["embedding"]


def test_blocks_cost_what_their_matrices_do() -> None:
    config = load_config("ds_configs/lumi_400gpu.json")
    arithmetic = make_plan(config).arithmetic
    tokens, dim = 2 * 8192, 768
    assert arithmetic.products["blocks"] == 6 * 2 * tokens * 12 * dim**2
    assert arithmetic.attention == 6 * 4 * 2 * 8192**2 * dim


def test_checkpointing_computes_the_blocks_again(tiny_config: TinyConfig) -> None:
    plain = planned(tiny_config())
    again = planned(tiny_config(model={"gradient_checkpointing": True}))
    assert again.backward - plain.backward == plain.products["blocks"] + plain.attention


def test_the_local_bias_widens_the_heads_of_a_block_on_a_large_map_and_is_in_float32() -> None:
    plain, local = (
        make_plan(load_config("ds_configs/lumi_400gpu.json", [f"model.local_bias={form}"])).arithmetic
        for form in ("false", "origin")
    )
    assert plain.float32_attention == 0
    assert local.float32_attention == plain.attention // 6 * (96 + EXTRA_COLUMNS) // 96
    assert local.attention == plain.attention // 6 * 5 + local.float32_attention
    assert plain.backward_s(4.0, 1.0) == plain.backward / 4.0
    assert local.forward_s(4.0, 1.0) == pytest.approx(local.forward / 4.0 + 0.75 * local.float32_attention)
