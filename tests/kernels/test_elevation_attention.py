import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from aqtopo_kernels import elevation_attention

Arguments = dict[str, Tensor]


def make_arguments(
    batch: int = 2, heads: int = 3, tokens: int = 7, width: int = 4, seed: int = 0
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, width)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    elevation = 5000 * torch.rand((batch, tokens), generator=generator, dtype=torch.float64)
    alpha = torch.tensor([2.0, -0.7, 5.0], dtype=torch.float64)[:heads]
    return {"q": q, "k": k, "v": v, "elevation": elevation, "alpha": alpha}


def test_equals_the_published_formula_token_by_token() -> None:
    a = make_arguments(batch=1, heads=2, tokens=4)
    out = elevation_attention(**a)
    for h in range(2):
        for i in range(4):
            scores = []
            for j in range(4):
                rise_km = max(0.0, float(a["elevation"][0, j] - a["elevation"][0, i])) / 1000.0
                product = float(a["q"][0, h, i] @ a["k"][0, h, j]) / math.sqrt(4)
                scores.append(product - float(a["alpha"][h]) * rise_km)
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            torch.testing.assert_close(out[0, h, i], weights @ a["v"][0, h], rtol=1e-12, atol=1e-12)


def test_flat_ground_is_plain_attention() -> None:
    a = make_arguments() | {"elevation": torch.full((2, 7), 4370.0, dtype=torch.float64)}
    plain = functional.scaled_dot_product_attention(a["q"], a["k"], a["v"])
    torch.testing.assert_close(elevation_attention(**a), plain, rtol=1e-12, atol=1e-12)


def test_what_lies_higher_than_the_query_is_hindered_and_what_lies_lower_is_not() -> None:
    a = make_arguments(batch=1, heads=1, tokens=2) | {"alpha": torch.tensor([2.0], dtype=torch.float64)}
    a["k"] = torch.zeros_like(a["k"])
    a["v"] = torch.eye(2, 4, dtype=torch.float64)[None, None]
    valley, mountain = elevation_attention(**a | {"elevation": torch.tensor([[0.0, 3000.0]])})[0, 0, :, :2]
    assert mountain.tolist() == pytest.approx([0.5, 0.5])
    assert valley.tolist() == pytest.approx([1 / (1 + math.exp(-6)), 1 / (1 + math.exp(6))])


def test_the_largest_rise_on_earth_neither_overflows_nor_loses_its_gradient() -> None:
    a = make_arguments(batch=1, heads=1, tokens=2) | {"elevation": torch.tensor([[0.0, 9000.0]])}
    alpha = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    out = elevation_attention(**a | {"alpha": alpha})
    (gradient,) = torch.autograd.grad(out.square().sum(), alpha)
    assert out.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().item() > 0.0


@given(batch=st.integers(1, 3), tokens=st.integers(1, 12), seed=st.integers(0, 2**31), wide=st.booleans())
@settings(max_examples=30, deadline=None)
def test_an_order_only_moves_the_rows(batch: int, tokens: int, seed: int, wide: bool) -> None:
    a = make_arguments(batch=batch, tokens=tokens, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    ordered = elevation_attention(**a, order=order if wide else order.int())
    stored = elevation_attention(**a)
    for b in range(batch):
        torch.testing.assert_close(ordered[b], stored[b][:, order[b]], rtol=0, atol=1e-13)


def test_gradients_of_every_input_hold_against_finite_differences() -> None:
    a = {name: x.requires_grad_() for name, x in make_arguments(batch=1, tokens=4).items()}
    order = torch.tensor([[2, 0, 3, 1]])

    def attend(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        return elevation_attention(q, k, v, a["elevation"].detach(), alpha, order, scale=0.3)

    assert torch.autograd.gradcheck(attend, (a["q"], a["k"], a["v"], a["alpha"]))


def test_one_alpha_serves_all_heads() -> None:
    a = make_arguments()
    one = elevation_attention(**a | {"alpha": torch.tensor([2.0], dtype=torch.float64)})
    each = elevation_attention(**a | {"alpha": torch.full((3,), 2.0, dtype=torch.float64)})
    assert torch.equal(one, each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32_and_returns_the_input_dtype(dtype: torch.dtype) -> None:
    a = make_arguments()
    low = {name: x.to(dtype) for name, x in a.items()} | {"elevation": a["elevation"].float()}
    exact = elevation_attention(**{name: x.double() for name, x in low.items()})
    out = elevation_attention(**low)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_strided_inputs_give_what_contiguous_ones_give() -> None:
    a = make_arguments()
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in a.items() if x.ndim == 4}
    assert not strided["q"].is_contiguous()
    assert torch.equal(elevation_attention(**a | strided), elevation_attention(**a))


BAD: list[tuple[str, Callable[[Arguments], Tensor], str]] = [
    ("q", lambda a: a["q"][0], r"q \(3, 7, 4\)"),
    ("k", lambda a: a["k"][:, :, :5], r"k \(2, 3, 5, 4\)"),
    ("v", lambda a: a["v"].float(), r"v torch\.float32"),
    ("k", lambda a: a["k"].to("meta"), "cpu, meta, cpu"),
    ("elevation", lambda a: a["elevation"][:, 1:], r"\(B, N\) = \(2, 7\).*got \(2, 6\)"),
    ("elevation", lambda a: a["elevation"].bfloat16(), r"torch\.bfloat16.*rounds heights"),
    ("alpha", lambda a: a["alpha"][:2], r"\(1,\) or \(H,\) = \(3,\).*got \(2,\)"),
    ("alpha", lambda a: a["alpha"].long(), r"floating alpha, but got torch\.int64"),
    ("alpha", lambda a: a["alpha"].to("meta"), "cpu, cpu, meta"),
    ("order", lambda a: a["elevation"].long()[0], r"order of shape \(B, N\) = \(2, 7\).*got \(7,\)"),
    ("order", lambda a: a["elevation"], r"int32 or int64, but got torch\.float64"),
    ("order", lambda a: a["elevation"].long().to("meta"), "cpu, meta"),
]


@pytest.mark.parametrize(("name", "make_bad", "message"), BAD)
def test_refuses_what_does_not_fit_and_names_it(
    name: str, make_bad: Callable[[Arguments], Tensor], message: str
) -> None:
    a = make_arguments()
    with pytest.raises(ValueError, match=message):
        elevation_attention(**a | {name: make_bad(a)})
