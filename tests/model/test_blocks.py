from typing import Any

import pytest

from aqtopo.config import ModelConfig
from aqtopo.model.blocks import kernel_head_widths

NEAR: dict[str, Any] = {"local_bias": "near"}


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({}, (96,)),
        (NEAR, (96, 112)),
        (NEAR | {"elevation_bias": False}, (96,)),  # by PyTorch, which takes any
        (NEAR | {"elevation_bias": False, "attention": "fused"}, (96, 112)),
    ],
)
def test_kernels_have_to_take_the_heads_that_the_local_bias_widens(
    changes: dict[str, Any], widths: tuple[int, ...]
) -> None:
    assert kernel_head_widths(ModelConfig.model_validate(changes)) == widths
