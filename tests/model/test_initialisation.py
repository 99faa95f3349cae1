import numpy as np
import pytest
import torch

from aqtopo.config import ModelConfig
from aqtopo.model import AirQualityViT
from aqtopo.model.initialisation import sincos_1d, sincos_2d

from .conftest import GRID, SMALL, random_terrain

LAST_LAYER = "head.4.weight"


def fresh(seed: int = 0, **changes: object) -> AirQualityViT:
    config = ModelConfig.model_validate({**SMALL, "dim": 64, **changes})
    return AirQualityViT(config, random_terrain(), variables=5, targets=3, seed=seed)


def test_one_dimensional_embedding_is_sines_then_cosines() -> None:
    embedding = sincos_1d(4, [0, 3])
    assert embedding[0].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert embedding[1] == pytest.approx([np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)])


def test_two_dimensional_embedding_holds_columns_then_rows() -> None:
    embedding = sincos_2d(8, (2, 3))
    assert (embedding[4] == np.concatenate([sincos_1d(4, [1])[0], sincos_1d(4, [1])[0]])).all()
    assert (embedding[2] == np.concatenate([sincos_1d(4, [2])[0], sincos_1d(4, [0])[0]])).all()


def test_a_scan_position_starts_with_its_coordinates_in_calm_air() -> None:
    raster = torch.from_numpy(sincos_2d(64, (4, 8))).float()
    assert torch.equal(fresh(wind_order=False).pos_embed[0], raster)
    calm = fresh().wind_order
    assert calm is not None
    assert torch.equal(fresh().pos_embed[0], raster[calm.calm_order()])
    assert torch.equal(fresh().pos_embed[0, 4], raster[8])  # the fifth place: second row of the first region


def test_initial_weights_preserve_the_variance() -> None:
    state = fresh().state_dict()
    for name, tensor in state.items():
        if name.endswith(("bias", "proj_biases")) or name == "var_query":
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        elif name == "token_embeds.proj_weights":
            assert float(tensor.std()) == pytest.approx(1 / 2, rel=0.1)  # patches of 2 x 2 pixels
        elif name == LAST_LAYER:
            assert float(tensor.std()) == pytest.approx(0.02, rel=0.3)
        elif name.endswith("weight"):
            limit = (6 / sum(tensor.shape)) ** 0.5
            assert limit * 0.9 < tensor.abs().max() <= limit, name
    assert torch.equal(state["var_embed"][0], torch.from_numpy(sincos_1d(64, np.arange(5))).float())


def test_the_input_is_not_negligible_beside_the_position_embedding() -> None:
    model = fresh(dim=64)
    generator = torch.Generator().manual_seed(0)
    embedded = model.embed(torch.randn(4, 5, *GRID, generator=generator))
    signal = (embedded - embedded.mean(0)).std()
    assert signal > 0.1 * model.pos_embed.std()


def test_first_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = fresh(seed=7).state_dict()
    torch.manual_seed(2)
    again, other = fresh(seed=7).state_dict(), fresh(seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.0.weight"], other["head.0.weight"])


def test_the_grid_is_the_one_assumed_above() -> None:
    assert GRID == (8, 16)
