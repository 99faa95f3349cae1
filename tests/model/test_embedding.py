import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import GRID, VARIABLES, ModelMaker, random_inputs
from .plain_climax import plain_embedding

EMBEDDING = ("token_embeds.", "var_embed", "var_query", "var_agg.")


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 4])
def test_collapsed_equals_plain_climax_in_values(make_model: ModelMaker, patch: int, heads: int) -> None:
    model = make_model(patch=patch, heads=heads, regions=[1, 1])
    inputs = random_inputs()
    torch.testing.assert_close(model.embed(inputs), plain_embedding(model, inputs), rtol=0, atol=1e-10)


def test_collapsed_equals_plain_climax_in_every_gradient(make_model: ModelMaker) -> None:
    model = make_model()
    inputs = random_inputs().requires_grad_()
    names = [name for name, _ in model.named_parameters() if name.startswith(EMBEDDING)]
    leaves = [inputs, *(model.get_parameter(name) for name in names)]
    weight = torch.randn(2, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    collapsed = torch.autograd.grad((model.embed(inputs) * weight).sum(), leaves)
    plain = torch.autograd.grad((plain_embedding(model, inputs) * weight).sum(), leaves)
    assert len(names) == 8
    for name, ours, theirs in zip(["inputs", *names], collapsed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
        assert theirs.abs().max() > 1e-3, name


class LargestTensor(TorchDispatchMode):
    """Records the element count of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_has_a_token_for_each_variable(make_model: ModelMaker) -> None:
    model = make_model(dim=64)
    tokens = GRID[0] * GRID[1] // 4
    with LargestTensor() as collapsed:
        model.embed(random_inputs(batch=16)).sum().backward()
    with LargestTensor() as plain:
        plain_embedding(model, random_inputs(batch=16)).sum().backward()
    per_variable = 16 * VARIABLES * tokens * 64
    assert plain.elements >= per_variable
    assert collapsed.elements < per_variable / 2


def test_half_precision_weights_are_combined_in_float32(make_model: ModelMaker) -> None:
    model = make_model().bfloat16()
    inputs = random_inputs().float()
    rounded_only_at_the_end = model.float().embed(inputs).bfloat16()
    assert torch.equal(model.bfloat16().embed(inputs), rounded_only_at_the_end)
