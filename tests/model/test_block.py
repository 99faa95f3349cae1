import torch

from .conftest import ModelMaker


def test_leaving_in_an_order_equals_ordering_the_result(make_model: ModelMaker) -> None:
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
