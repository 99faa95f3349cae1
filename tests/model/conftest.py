from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aqtopo.config import ModelConfig
from aqtopo.model import AirQualityViT, Terrain

GRID = (8, 16)
VARIABLES, TARGETS = 5, 3

SMALL = {
    "patch": 2,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dropout": 0.0,
    "drop_path": 0.0,
    "regions": [2, 2],
}

ModelMaker = Callable[..., AirQualityViT]


def random_terrain(seed: int = 0, *, ascending: bool = True) -> Terrain:
    rng = np.random.default_rng(seed)
    latitude = np.linspace(17.0, 49.0, GRID[0])
    longitude = np.linspace(80.0, 130.0, GRID[1])
    elevation_m = rng.uniform(-100.0, 6000.0, GRID).astype(np.float32)
    return Terrain(elevation_m, latitude if ascending else latitude[::-1], longitude)


@pytest.fixture
def make_model() -> ModelMaker:
    """Small models in float64 with weights large enough that every part of them matters."""

    def make(terrain: Terrain | None = None, *, seed: int = 0, **changes: Any) -> AirQualityViT:
        config = ModelConfig.model_validate({**SMALL, **changes})
        terrain = random_terrain() if terrain is None else terrain
        model = AirQualityViT(config, terrain, variables=VARIABLES, targets=TARGETS).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter += 0.2 * noise
        return model

    return make


def random_inputs(batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, VARIABLES, *GRID), generator=generator, dtype=torch.float64)


def uniform_wind(u: float, v: float, batch: int = 2) -> Tensor:
    """(batch, 2, rows, columns) [m/s], the same everywhere."""
    return torch.tensor([u, v], dtype=torch.float64).view(1, 2, 1, 1).expand(batch, 2, *GRID)


def lead(*hours: float, batch: int = 2) -> Tensor:
    return torch.tensor([hours], dtype=torch.float64).expand(batch, -1)
