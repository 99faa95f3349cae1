from collections.abc import Callable
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig, load_config
from aqtopo.model.locality import EXTRA_COLUMNS
from aqtopo.planning.micro_step import activation_bytes, count_flop
from aqtopo.planning.plan import make_plan
from tests.planning.counted_pass import make_model, product_flop, run, saved_bytes

TinyConfig = Callable[..., RunConfig]

MODELS: dict[str, dict[str, Any]] = {
    "reference": {},
    "dropout": {"dropout": 0.1},
    "drop path": {"drop_path": 0.1},
    "decoder": {"lead_time": "decoder"},
    "short head": {"decoder_depth": 0, "mlp_ratio": 3.0, "prediction": "tendency"},
    "raster order": {"wind_order": False},
    "a barrier strength per head": {"alpha_per_head": True},
    "two elevation biases": {"bias_blocks": [0, 1]},
    "no elevation bias": {"elevation_bias": False},
    "fused": {"elevation_bias": False, "attention": "fused"},
    "near": {"local_bias": "near"},
    "near, raster order": {"local_bias": "near", "wind_order": False},
    "near, fused": {"local_bias": "near", "elevation_bias": False, "attention": "fused"},
    "origin": {"local_bias": "origin", "bias_blocks": [0, 2], "dropout": 0.1},
    "local path": {"local_path": True, "local_width": 12, "lead_time": "decoder"},
    "local path, encoder": {"local_path": True, "local_width": 5},
    "weather": {"lead_time": "decoder", "local_path": True},
    "weather, encoder": {"local_path": True},
    "origin, some heads": {"local_bias": "origin", "local_heads": 3, "elevation_bias": False},
}


@pytest.fixture(params=MODELS)
def variant(request: pytest.FixtureRequest, tiny_config: TinyConfig) -> Callable[[str], RunConfig]:
    """Configuration of a model variant in a precision."""

    def make(precision: str) -> RunConfig:
        block = {} if precision == "fp32" else {precision: {"enabled": True}}
        model = {"depth": 3, "heads": 4, **MODELS[request.param]}
        block |= {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 1}
        data = {"store": "none.zarr"}
        if "local_path" in model:  # it needs a larger grid; and further inputs
            data |= {"grid": [16, 32], "forcings": ["insolation"], "history_hours": [6]}
        if "weather" in request.param:
            data["weather_at_horizons"] = ["u", "temp"]
        return tiny_config(model=model, data=data, deepspeed=block)

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_activations_equal_the_bytes_saved_by_a_real_pass(
    variant: Callable[[str], RunConfig], precision: str
) -> None:
    config = variant(precision)
    assert activation_bytes(config).parts == saved_bytes(config)


def test_flop_equal_the_products_of_a_real_pass(variant: Callable[[str], RunConfig]) -> None:
    config = variant("fp32")
    assert count_flop(config).products == product_flop(config)


def test_parts_are_the_blocks_the_head_and_the_rest(tiny_config: TinyConfig) -> None:
    estimate = activation_bytes(tiny_config(model={"depth": 3}))
    assert set(estimate.parts) == {"embedding and final norm", "blocks.0", "blocks.1", "blocks.2", "head"}
    assert sum(estimate.parts.values()) == estimate.plain
    assert estimate.parts["blocks.1"] == estimate.parts["blocks.2"]


def test_checkpointing_saves_block_inputs_and_one_block(tiny_config: TinyConfig) -> None:
    config = tiny_config(model={"depth": 6})
    estimate = activation_bytes(config)
    blocks = [count for name, count in estimate.parts.items() if name.startswith("blocks.")]
    inputs = 6 * config.micro_batch * config.tokens * 32 * 4
    assert estimate.block_inputs == inputs
    assert estimate.checkpointed == estimate.plain - sum(blocks) + max(blocks) + inputs
    assert estimate.checkpointed < estimate.plain


def test_activations_grow_with_the_micro_batch(tiny_config: TinyConfig) -> None:
    def plain(micro_batch: int) -> int:
        config = tiny_config(deepspeed={"train_micro_batch_size_per_gpu": micro_batch})
        return activation_bytes(config).plain

    assert plain(8) / plain(4) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_forward_and_backward_flop_match_a_real_pass(tiny_config: TinyConfig, lead_time: str) -> None:
    config = tiny_config(model={"lead_time": lead_time, "elevation_bias": False, "attention": "torch"})
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's flash attention
        output = run(make_model(config), config)
        forward = counter.get_total_flops()
        output.square().mean().backward()
    flop = count_flop(config)
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
    plain = count_flop(tiny_config())
    again = count_flop(tiny_config(model={"gradient_checkpointing": True}))
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
