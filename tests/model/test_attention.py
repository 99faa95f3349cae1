import torch

from aqtopo.model import AirQualityViT
from aqtopo.model.attention import ElevationAttention, SelfAttention, torch_attention

from .conftest import ModelMaker, lead, random_inputs, random_terrain, uniform_wind


def forecast(model: AirQualityViT) -> torch.Tensor:
    out: torch.Tensor = model(random_inputs(), uniform_wind(3.0, 1.0), lead(24.0))
    return out


def elevation_attention_of(model: AirQualityViT) -> ElevationAttention:
    attention = model.blocks[0].attn
    assert isinstance(attention, ElevationAttention)
    return attention


def random_tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_elevation_bias_changes_the_forecast_over_mountains(make_model: ModelMaker) -> None:
    model = make_model()
    with_bias = forecast(model)
    with torch.no_grad():
        elevation_attention_of(model).alpha.zero_()
    assert (with_bias - forecast(model)).abs().max() > 1e-2 * with_bias.abs().max()


def test_the_elevation_bias_has_no_effect_over_flat_terrain(make_model: ModelMaker) -> None:
    terrain = random_terrain()
    terrain.elevation_m.fill(4370.0)
    model = make_model(terrain)
    with_bias = forecast(model)
    with torch.no_grad():
        elevation_attention_of(model).alpha.zero_()
    torch.testing.assert_close(with_bias, forecast(model), rtol=1e-12, atol=1e-12)


def test_alpha_gets_a_gradient(make_model: ModelMaker) -> None:
    model = make_model(alpha_per_head=True)
    forecast(model).square().sum().backward()
    gradient = elevation_attention_of(model).alpha.grad
    assert gradient is not None
    assert (gradient.abs() > 1e-6).all()


def test_alpha_starts_at_its_configured_value() -> None:
    for per_head, shape in [(False, (1,)), (True, (2,))]:
        attention = ElevationAttention(
            8, 2, random_terrain().patch_means_m(2), alpha=2.0, per_head=per_head, dropout=0.0, layer="a"
        )
        assert attention.alpha.shape == shape
        assert (attention.alpha == 2.0).all()


def test_heights_are_metres_and_not_standardised(make_model: ModelMaker) -> None:
    terrain = random_terrain()
    heights = elevation_attention_of(make_model(terrain)).height_bits.view(torch.float32)
    assert torch.equal(heights, torch.from_numpy(terrain.patch_means_m(2)))
    assert heights.max() > 1000.0


def test_uphill_is_the_same_op_on_negative_heights(make_model: ModelMaker) -> None:
    published, uphill = make_model(), make_model(elevation_bias="uphill")
    there = elevation_attention_of(published).height_bits.view(torch.float32)
    assert torch.equal(elevation_attention_of(uphill).height_bits.view(torch.float32), -there)
    assert not torch.allclose(forecast(published), forecast(uphill))


def test_published_reduces_influence_from_above_and_uphill_from_below(make_model: ModelMaker) -> None:
    terrain = random_terrain()
    terrain.elevation_m.fill(0.0)
    terrain.elevation_m[:2, :2] = 3000.0  # token 0 is a mountain, the others are a plain
    influence = {}
    for direction in ("published", "uphill"):
        attention = elevation_attention_of(make_model(terrain, elevation_bias=direction))
        with torch.no_grad():
            attention.qkv.weight[:32].zero_()  # queries and keys are 0, so scores are the bias
        x = random_tokens().requires_grad_()
        y = attention(x)
        down = torch.autograd.grad(y[0, 5].sum(), x, retain_graph=True)[0][0, 0].norm()
        up = torch.autograd.grad(y[0, 0].sum(), x)[0][0, 5].norm()
        influence[direction] = float(down), float(up)
    assert influence["published"][0] < 0.1 * influence["uphill"][0]
    assert influence["uphill"][1] < 0.1 * influence["published"][1]


def test_casting_the_model_keeps_heights_in_float32(make_model: ModelMaker) -> None:
    model = make_model()
    before = elevation_attention_of(model).height_bits.clone()
    model.bfloat16()
    assert torch.equal(elevation_attention_of(model).height_bits, before)
    assert forecast(model.float().bfloat16()).isfinite().all()


def test_softmax_is_float32_in_a_bfloat16_model() -> None:
    """Scores up to about 30, which bfloat16 rounds by up to 0.06, and weights by up to 6%."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 16, generator=generator).bfloat16() for _ in range(3))
    q = 8 * q
    exact = torch_attention(q.double(), k.double(), v.double(), scale=None)
    error = (torch_attention(q, k, v, scale=None).double() - exact).norm() / exact.norm()
    rounded = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
    assert error < 3e-3
    assert (rounded.double() - exact).norm() / exact.norm() > 6e-3


def test_both_attentions_write_the_same_rows_in_any_order(make_model: ModelMaker) -> None:
    model = make_model()
    x = random_tokens()
    order = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    for block in model.blocks:
        stored, ordered = block.attn(x), block.attn(x, None, order)
        for b in range(2):
            torch.testing.assert_close(ordered[b], stored[b][order[b]], rtol=0, atol=1e-12)
    assert isinstance(model.blocks[1].attn, SelfAttention)


def test_plain_attention_equals_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours = SelfAttention(16, 4, dropout=0.0, layer="a").double()
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = random_tokens()
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-12, atol=1e-12)


def test_fused_attention_is_the_same_function(make_model: ModelMaker) -> None:
    torch_model, fused = make_model(attention="torch"), make_model(attention="fused")
    torch.testing.assert_close(forecast(fused), forecast(torch_model), rtol=1e-10, atol=1e-10)
    local = {"local_bias": "origin", "local_heads": 1, "bias_blocks": [0, 1]}
    for bias in ({}, local):
        pair = (make_model(attention=name, elevation_bias=False, **bias) for name in ("torch", "fused"))
        torch.testing.assert_close(*map(forecast, pair), rtol=1e-10, atol=1e-10)


def test_attention_backends_names_the_implementation_of_each_block(make_model: ModelMaker) -> None:
    here = torch.device("cpu")
    assert make_model().attention_backends(here) == (
        "block 0: aqtopo_kernels (cpu) with elevation bias; block 1: PyTorch's scaled_dot_product_attention"
    )
    fused = make_model(attention="fused", depth=3).attention_backends(here)
    assert fused.endswith("; blocks 1-2: aqtopo_kernels (cpu)")
    local = make_model(local_bias="near", bias_blocks=[0, 1]).bfloat16().attention_backends(here)
    assert local == ("blocks 0-1: aqtopo_kernels (cpu) with elevation bias and local bias, in torch.float32")
