from typing import Any

import pytest
import torch

from aqtopo.config import ModelConfig
from aqtopo.model.transformer_block import kernel_head_widths

from .conftest import ModelMaker

NEAR: dict[str, Any] = {"local_bias": "near"}


def test_a_reordering_block_equals_the_reordered_result(make_model: ModelMaker) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 16, dtype=torch.float64, generator=generator)
    order = torch.stack([torch.randperm(32, generator=generator) for _ in range(2)])
    for block in make_model().blocks:
        stored, ordered = block(x), block(x, None, order)
        for b in range(2):
            torch.testing.assert_close(ordered[b], stored[b][order[b]], rtol=0, atol=1e-12)


def test_is_pre_norm_with_two_residuals(make_model: ModelMaker) -> None:
    block = make_model().blocks[1]
    x = torch.randn(2, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x + block.attn(block.norm1(x))
    hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(y)), approximate="none")
    torch.testing.assert_close(block(x), y + block.mlp.fc2(hidden), rtol=0, atol=1e-12)
    assert block.norm1.eps == 1e-5


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({}, (96,)),
        (NEAR, (96, 112)),
        (NEAR | {"elevation_bias": False}, (96,)),  # PyTorch's attention supports any width
        (NEAR | {"elevation_bias": False, "attention": "fused"}, (96, 112)),
    ],
)
def test_kernel_head_widths_include_the_widened_heads(
    changes: dict[str, Any], widths: tuple[int, ...]
) -> None:
    assert kernel_head_widths(ModelConfig.model_validate(changes)) == widths
