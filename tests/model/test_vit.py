from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aqtopo.config import ModelConfig, RunConfig
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.model.wind_order import WindOrder
from aqtopo.training.engine import group_parameters
from aqtopo.variables import INPUT_VARIABLES, TARGET_VARIABLES

from .conftest import (
    GRID,
    SMALL,
    TARGETS,
    VARIABLES,
    ModelMaker,
    lead,
    random_inputs,
    random_terrain,
    uniform_wind,
)
from .plain_climax import plain_embedding

WEST, NORTH_EAST = uniform_wind(5.0, 0.0), uniform_wind(-2.0, -2.5)

REFERENCE_SHAPES = {
    "var_embed": (1, 15, 768),
    "var_query": (1, 1, 768),
    "pos_embed": (1, 8192, 768),
    "token_embeds.proj_weights": (15, 768, 1, 2, 2),
    "token_embeds.proj_biases": (15, 768),
    "var_agg.in_proj_weight": (2304, 768),
    "var_agg.in_proj_bias": (2304,),
    "var_agg.out_proj.weight": (768, 768),
    "var_agg.out_proj.bias": (768,),
    "lead_time_embed.weight": (768, 1),
    "lead_time_embed.bias": (768,),
    "blocks.0.norm1.weight": (768,),
    "blocks.0.norm1.bias": (768,),
    "blocks.0.attn.alpha": (1,),
    "blocks.0.attn.qkv.weight": (2304, 768),
    "blocks.0.attn.proj.weight": (768, 768),
    "blocks.0.attn.proj.bias": (768,),
    "blocks.0.norm2.weight": (768,),
    "blocks.0.norm2.bias": (768,),
    "blocks.0.mlp.fc1.weight": (3072, 768),
    "blocks.0.mlp.fc1.bias": (3072,),
    "blocks.0.mlp.fc2.weight": (768, 3072),
    "blocks.0.mlp.fc2.bias": (768,),
    "norm.weight": (768,),
    "norm.bias": (768,),
    "head.0.weight": (768, 768),
    "head.0.bias": (768,),
    "head.2.weight": (768, 768),
    "head.2.bias": (768,),
    "head.4.weight": (24, 768),
    "head.4.bias": (24,),
}
for _n in range(1, 6):
    REFERENCE_SHAPES |= {
        name.replace("blocks.0", f"blocks.{_n}"): shape
        for name, shape in REFERENCE_SHAPES.items()
        if name.startswith("blocks.0") and not name.endswith("alpha")
    } | {f"blocks.{_n}.attn.qkv.bias": (2304,)}


def reference_model(**changes: object) -> AirQualityViT:
    """The model of the reference run, without its 200 MB of weights."""
    with torch.device("meta"):
        config = ModelConfig.model_validate(changes)
        return AirQualityViT(config, Terrain.flat((128, 256)), variables=15, targets=6)


def run(model: AirQualityViT, wind: Tensor = WEST, *hours: float, inputs: Tensor | None = None) -> Tensor:
    inputs = random_inputs() if inputs is None else inputs
    out: Tensor = model(inputs, wind, lead(*hours or (24.0,)))
    return out


def order_of(model: AirQualityViT, wind: Tensor) -> Tensor:
    assert isinstance(model.wind_order, WindOrder)
    order: Tensor = model.wind_order(wind)
    return order


def test_state_names_and_shapes_are_those_of_climax() -> None:
    state = reference_model().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == REFERENCE_SHAPES


@pytest.mark.parametrize(
    "changes", [{}, {"elevation_bias": False}, {"lead_time": "decoder"}, {"wind_order": False}]
)
def test_the_reference_model_has_91_tensors_in_four_parts(changes: dict[str, object]) -> None:
    names = [
        name for name, parameter in reference_model(**changes).named_parameters() if parameter.requires_grad
    ]
    parts = Counter(name.split(".")[0] for name in names)
    assert len(names) == 91
    assert (parts["blocks"], parts["token_embeds"], parts["head"]) == (72, 2, 6)


def test_the_reference_model_falls_into_the_four_named_groups(tiny_config: Callable[..., RunConfig]) -> None:
    names = [name for name, _ in reference_model().named_parameters()]
    groups = group_parameters(names, tiny_config())
    counts = {group: len(members) for group, members in groups.items()}
    assert counts == {"vit_blocks": 72, "wind_embedding": 2, "head": 6, "others": 11}


def test_the_reference_model_has_52_million_parameters() -> None:
    assert sum(parameter.numel() for parameter in reference_model().parameters()) == 52_451_353


def test_the_whole_forward_reads_no_value_back_from_the_device() -> None:
    model = reference_model(depth=2).eval()
    with torch.device("meta"):
        out = model(torch.empty(2, 15, 128, 256), torch.empty(2, 2, 128, 256), torch.empty(2, 3))
    assert out.shape == (2, 3, 6, 128, 256)


def plain_forecast(model: AirQualityViT, wind: Tensor, hours: Tensor) -> Tensor:
    """Permute all tokens first, run the model without an order, and permute the result back."""
    order = order_of(model, wind)
    rows = order[..., None]
    x = plain_embedding(model, random_inputs()).gather(1, rows.expand(-1, -1, 16))
    x = (
        x
        + model.pos_embed
        + functional.linear(hours / 100, model.lead_time_embed.weight, model.lead_time_embed.bias)[:, None]
    )
    heights = torch.from_numpy(random_terrain().patch_means_m(2)).double()[order]
    for index, block in enumerate(model.blocks):
        q, k, v = (y.view(2, 32, 2, 8).transpose(1, 2) for y in block.attn.qkv(block.norm1(x)).chunk(3, -1))
        scores = q @ k.mT / 8**0.5
        if index == 0:
            rise = torch.relu(heights[:, None, :] - heights[:, :, None])[:, None]
            scores = scores - block.attn.alpha * rise / 1000
        x = x + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 32, 16))
        x = x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))
    pixels = model.head(model.norm(x))
    raster = torch.zeros_like(pixels).scatter(1, rows.expand_as(pixels), pixels).view(2, 4, 8, 2, 2, TARGETS)
    return torch.einsum("nhwpqc->nchpwq", raster).reshape(2, 1, TARGETS, *GRID)


@pytest.mark.parametrize(
    "wind", [WEST, NORTH_EAST, uniform_wind(0.0, 0.1)], ids=["west", "north-east", "calm"]
)
def test_equals_the_plain_model_that_permutes_everything_first(make_model: ModelMaker, wind: Tensor) -> None:
    model = make_model()
    expected = plain_forecast(model, wind, lead(24.0))
    torch.testing.assert_close(run(model, wind), expected, rtol=1e-10, atol=1e-10)


def test_every_parameter_gets_a_gradient(make_model: ModelMaker) -> None:
    model = make_model()
    run(model, NORTH_EAST).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("elevation_bias", ["published", False])
@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_without_position_embedding_the_wind_order_does_not_matter(
    make_model: ModelMaker, elevation_bias: object, lead_time: str
) -> None:
    model = make_model(elevation_bias=elevation_bias, lead_time=lead_time)
    torch.nn.init.zeros_(model.pos_embed)
    torch.testing.assert_close(run(model, WEST), run(model, NORTH_EAST), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("elevation_bias", ["published", False])
def test_with_position_embedding_the_wind_order_matters(
    make_model: ModelMaker, elevation_bias: object
) -> None:
    model = make_model(elevation_bias=elevation_bias)
    west, north_east = run(model, WEST), run(model, NORTH_EAST)
    assert (west - north_east).abs().max() > 1e-2 * west.abs().max()


def test_without_wind_order_the_wind_does_not_matter_and_rows_are_raster(make_model: ModelMaker) -> None:
    model = make_model(wind_order=False)
    assert model.wind_order is None
    assert torch.equal(run(model, WEST), run(model, NORTH_EAST))


def test_one_region_in_calm_air_equals_the_model_without_wind_order(make_model: ModelMaker) -> None:
    calm = uniform_wind(0.1, 0.1)
    ordered, raster = make_model(regions=[1, 1]), make_model(wind_order=False)
    raster.load_state_dict(ordered.state_dict())
    torch.testing.assert_close(run(ordered, calm), run(raster, calm), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
@pytest.mark.parametrize("patch_index", [0, 13, 31])
def test_a_delta_in_one_input_patch_reaches_that_patch_s_pixels(
    make_model: ModelMaker, lead_time: str, patch_index: int
) -> None:
    model = make_model(lead_time=lead_time)
    with torch.no_grad():
        for block in model.blocks:  # without attention no token depends on another
            block.attn.proj.weight.zero_()
    row, column = 2 * (patch_index // 8), 2 * (patch_index % 8)
    inputs = random_inputs()
    changed = inputs.clone()
    changed[:, :, row : row + 2, column : column + 2] += 1.0
    difference = run(model, NORTH_EAST, 12.0, 96.0, inputs=changed) - run(
        model, NORTH_EAST, 12.0, 96.0, inputs=inputs
    )
    inside = difference[..., row : row + 2, column : column + 2].clone()
    difference[..., row : row + 2, column : column + 2] = 0.0
    assert (inside.abs() > 1e-9).all()
    assert difference.abs().max() < 1e-12


def test_pixels_of_a_token_are_laid_out_row_by_row_with_channels_last(make_model: ModelMaker) -> None:
    pixels = torch.arange(2 * 32 * 12).view(1, 2, 32, 12)
    fields = make_model().unpatchify(pixels)
    assert fields.shape == (1, 2, TARGETS, *GRID)
    token = pixels[0, 1, 9].view(2, 2, TARGETS)  # second row, second column of patches
    for channel in range(TARGETS):
        assert torch.equal(fields[0, 1, channel, 2:4, 2:4], token[..., channel])


def test_a_flipped_latitude_axis_gives_the_flipped_forecast(make_model: ModelMaker) -> None:
    # Pixel-sized patches, one region, and a wind along which no two patches tie.
    wind = uniform_wind(3.0, 1.2)
    south_up, north_up = random_terrain(), random_terrain()
    north_up = Terrain(south_up.elevation_m[::-1].copy(), south_up.latitude[::-1], south_up.longitude)
    models = [make_model(terrain, patch=1, regions=[1, 1]) for terrain in (south_up, north_up)]
    assert not torch.equal(order_of(models[0], wind), order_of(models[1], wind))
    inputs = random_inputs()
    upright, flipped = run(models[0], wind, inputs=inputs), run(models[1], wind, inputs=inputs.flip(2))
    torch.testing.assert_close(flipped.flip(3), upright, rtol=1e-10, atol=1e-10)


def test_encoder_mode_runs_each_horizon_independently(make_model: ModelMaker) -> None:
    model = make_model()
    together = run(model, NORTH_EAST, 12.0, 24.0, 96.0)
    assert together.shape == (2, 3, TARGETS, *GRID)
    for index, hours in enumerate((12.0, 24.0, 96.0)):
        assert torch.equal(together[:, index : index + 1], run(model, NORTH_EAST, hours))
    assert not torch.allclose(together[:, 0], together[:, 2])


def test_decoder_mode_encodes_once_and_adds_the_horizon_before_the_head(make_model: ModelMaker) -> None:
    model = make_model(lead_time="decoder")
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    together = run(model, NORTH_EAST, 12.0, 24.0, 48.0, 96.0)
    assert together.shape == (2, 4, TARGETS, *GRID)
    assert len(calls) == 1
    torch.testing.assert_close(together[:, 2:3], run(model, NORTH_EAST, 48.0), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together[:, 0], together[:, 3])


@pytest.mark.parametrize("path", [{}, {"local_path": True, "local_width": 4}])
def test_each_horizon_sees_its_own_weather_in_encoder_mode_and_all_in_decoder_mode(
    tiny_config: Callable[..., RunConfig], path: dict[str, object]
) -> None:
    grid = (16, 16)
    data = {"grid": list(grid), "weather_at_horizons": ["u", "rh"], "horizons": [12, 24, 96]}
    generator = torch.Generator().manual_seed(0)
    inputs, wind = torch.randn(2, 15, *grid, generator=generator), torch.ones(2, 2, *grid)
    weather = torch.randn(2, 3, 2, *grid, generator=generator)
    leads = torch.tensor([[12.0, 24.0, 96.0]]).expand(2, -1)
    for lead_time, moved in (("encoder", [False, True, False]), ("decoder", [True, True, True])):
        model = build_model(tiny_config(data=data, model={"lead_time": lead_time} | path), Terrain.flat(grid))
        if model.local_path is not None:
            torch.nn.init.normal_(model.local_path.weight, generator=generator)
        torch.nn.init.normal_(model.head[-1].weight, generator=generator)
        changed = weather.clone()
        changed[:, 1, 1] += 1.0
        before = model(inputs, wind, leads, None, weather)
        difference = (model(inputs, wind, leads, None, changed) - before).abs()
        assert (difference.amax((0, 2, 3, 4)) > 1e-4).tolist() == moved
        with pytest.raises(ValueError, match="needs inputs and weather"):
            model(inputs, wind, leads)


def test_the_weather_is_listed_after_the_other_inputs(tiny_config: Callable[..., RunConfig]) -> None:
    data = {"forcings": ["insolation"], "history_hours": [6], "history_variables": ["o3"]}
    data |= {"weather_at_horizons": ["u"], "horizons": [12, 24]}
    encoder, decoder = (
        tiny_config(data=data, model={"lead_time": mode}).inputs for mode in ("encoder", "decoder")
    )
    assert encoder[15:] == ("insolation", "o3_6h_before", "u_ahead", "insolation_ahead")
    assert decoder[15:17] == encoder[15:17]
    ahead = ("u_12h_ahead", "insolation_12h_ahead", "u_24h_ahead", "insolation_24h_ahead")
    assert decoder[17:] == ahead


def test_lead_times_are_fed_in_hundreds_of_hours(make_model: ModelMaker) -> None:
    model = make_model()
    embedded = model.embed_lead_time(lead(50.0, batch=1))
    expected = 0.5 * model.lead_time_embed.weight[:, 0] + model.lead_time_embed.bias
    torch.testing.assert_close(embedded[0, 0], expected, rtol=1e-12, atol=1e-12)


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    blocks = reference_model(drop_path=0.1).blocks
    rates = [block.drop_path1.p for block in blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.1, 6).tolist())
    assert [block.drop_path2.p for block in blocks] == rates


def test_every_dropout_layer_has_a_unique_name() -> None:
    layers = [module.layer for module in reference_model().modules() if hasattr(module, "layer")]
    assert len(layers) == 1 + 6 * 5
    assert len(set(layers)) == len(layers)


def test_build_model_follows_the_run_s_configuration(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(training={"seed": 5})
    model = build_model(config, Terrain.flat(GRID))
    again = build_model(config, Terrain.flat(GRID))
    out = model(torch.zeros(1, 15, *GRID), torch.zeros(1, 2, *GRID), torch.full((1, 1), 24.0))
    assert out.shape == (1, 1, 6, *GRID)
    assert torch.equal(model.head[0].weight, again.head[0].weight)
    with pytest.raises(ValueError, match=r"data\.grid is 8 x 16, but the terrain has 4 x 16 cells"):
        build_model(config, Terrain.flat((4, 16)))


def test_a_tendency_is_the_change_from_the_present_state(tiny_config: Callable[..., RunConfig]) -> None:
    terrain = Terrain.flat(GRID)
    state = build_model(tiny_config(), terrain)
    tendency = build_model(tiny_config(model={"prediction": "tendency"}), terrain)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, len(INPUT_VARIABLES), *GRID, generator=generator)
    arguments = inputs, torch.zeros(1, 2, *GRID), torch.full((1, 1), 24.0)
    present = inputs[:, [INPUT_VARIABLES.index(name) for name in TARGET_VARIABLES]]
    torch.testing.assert_close(tendency(*arguments), state(*arguments) + present[:, None])


BAD_SHAPES = [
    ((2, VARIABLES + 1, *GRID), (2, 2, *GRID), (2, 1)),
    ((2, VARIABLES, 8, 8), (2, 2, *GRID), (2, 1)),
    ((2, VARIABLES, *GRID), (1, 2, *GRID), (2, 1)),
    ((2, VARIABLES, *GRID), (2, 2, 4, 8), (2, 1)),
    ((2, VARIABLES, *GRID), (2, 2, *GRID), (2,)),
    ((2, VARIABLES, *GRID), (2, 2, *GRID), (2, 0)),
    ((2, VARIABLES, *GRID), (2, 2, *GRID), (1, 1)),
]


@pytest.mark.parametrize("shapes", BAD_SHAPES)
def test_refuses_shapes_that_do_not_fit_and_names_them(
    make_model: ModelMaker, shapes: tuple[tuple[int, ...], ...]
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"inputs and weather \(B, 5, 8, 16\).*but got \(2, "):
        model(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch": 3}, "patches of 3 x 3"), ({"regions": [3, 2]}, "3 x 2 regions")],
)
def test_refuses_a_grid_that_is_not_a_multiple_of_patches_and_regions(
    changes: dict[str, object], message: str
) -> None:
    config = ModelConfig.model_validate({**SMALL, **changes})
    with pytest.raises(ValueError, match=message):
        AirQualityViT(config, random_terrain(), variables=VARIABLES, targets=TARGETS)


def test_model_for_any_grid_trains_without_seeds() -> None:
    terrain = Terrain.flat((12, 44))
    model = AirQualityViT.for_grid(terrain, variables=VARIABLES, targets=TARGETS, dim=16, depth=2, heads=2)
    assert model.config.regions == (6, 22)
    inputs, wind = torch.randn(2, VARIABLES, 12, 44), torch.zeros(2, 2, 12, 44)
    lead_hours = torch.full((2, 1), 12.0)
    first, second, third = (_forecast_with(seed, model, inputs, wind, lead_hours) for seed in (0, 0, 1))
    assert first.shape == (2, 1, TARGETS, 12, 44)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first, third)
    first.square().mean().backward()
    with pytest.raises(ValueError, match=r"= 45: must be a multiple of model\.patch = 2"):
        AirQualityViT.for_grid(Terrain.flat((12, 45)), variables=VARIABLES, targets=TARGETS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dept": 2}, r"model\.dept = 2: unknown key; did you mean depth\?"),
        ({"patch": 0}, r"model\.patch = 0: must be at least 1"),
        ({"patch": "4"}, r'model\.patch = "4": must be a whole number'),
        ({"dim": 30, "heads": 4}, r"model\.(dim|heads) = "),
        ({"depth": 2, "bias_blocks": (7,)}, r"model\.bias_blocks"),
        ({"prediction": "tendency"}, r'model\.prediction = "tendency": .*`present`'),
    ],
)
def test_wrong_settings_for_a_grid_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AirQualityViT.for_grid(Terrain.flat((12, 44)), variables=VARIABLES, targets=TARGETS, **settings)


def _forecast_with(seed: int, model: AirQualityViT, *given: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(seed)
    forecast: torch.Tensor = model.train()(*given)
    return forecast
