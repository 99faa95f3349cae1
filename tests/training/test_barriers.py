import pytest

from aqtopo.config import ModelConfig
from aqtopo.model import AirQualityViT, Terrain
from aqtopo.training.barriers import PREFERENCES, spelled_preferences


def test_preferences_are_told_in_hours_and_patches_by_block() -> None:
    config = ModelConfig(patch=2, dim=16, depth=1, heads=2, regions=(1, 1), local_bias="origin")
    model = AirQualityViT(config, Terrain.flat((8, 8)), variables=3, targets=1)
    learnt = {
        name: weight.tolist()
        for name, weight in model.named_parameters()
        if name.endswith(tuple(PREFERENCES))
    }
    assert spelled_preferences(learnt) == {
        "blocks.0 travel [h]": [0.0, 24.0],
        "blocks.0 width [patches]": pytest.approx([0.75, 1.5]),
    }
