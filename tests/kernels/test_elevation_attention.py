import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from aqtopo_kernels import elevation_attention
from aqtopo_kernels.elevation_attention import cpu
from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference

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


def test_flat_terrain_is_plain_attention() -> None:
    a = make_arguments() | {"elevation": torch.full((2, 7), 4370.0, dtype=torch.float64)}
    plain = functional.scaled_dot_product_attention(a["q"], a["k"], a["v"])
    torch.testing.assert_close(elevation_attention(**a), plain, rtol=1e-12, atol=1e-12)


def test_the_bias_acts_on_higher_keys_and_not_on_lower_ones() -> None:
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


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32_and_returns_the_input_dtype(dtype: torch.dtype, backend: str | None) -> None:
    a = make_arguments()
    low = {name: x.to(dtype) for name, x in a.items()} | {"elevation": a["elevation"].float()}
    exact = elevation_attention(**{name: x.double() for name, x in low.items()})
    out = elevation_attention(**low, backend=backend)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_changes_nothing() -> None:
    a = {name: x.float() for name, x in make_arguments(tokens=300, width=16).items()}
    expected = differentiate(elevation_attention, a)
    with torch.autocast("cpu", torch.bfloat16):
        found = differentiate(elevation_attention, a)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_second_derivative_is_refused() -> None:
    a = make_arguments()
    q = a["q"].requires_grad_()
    out = elevation_attention(**a | {"q": q})
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"backward through aqtopo_kernels\.elevation_attention_backward"):
        dq.sum().backward()


@pytest.mark.parametrize("needed", ["q", "k", "v", "alpha"])
def test_each_input_gets_its_gradient_alone(needed: str) -> None:
    a = make_arguments()
    leaf = a[needed].detach().requires_grad_()
    weight = torch.randn(a["q"].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = [
        torch.autograd.grad(attend(**a | {needed: leaf}), leaf, weight)[0]
        for attend in (elevation_attention, elevation_attention_reference)
    ]
    assert_same(gradients[:1], gradients[1:], 1e-12)


def test_strided_inputs_equal_contiguous_ones() -> None:
    a = make_arguments()
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in a.items() if x.ndim == 4}
    assert not strided["q"].is_contiguous()
    assert torch.equal(elevation_attention(**a | strided), elevation_attention(**a))


def random_orders(batch: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])


def differentiate(attend: Callable[..., Tensor], a: Arguments, order: Tensor | None = None) -> list[Tensor]:
    """Return the result and the gradients of q, k, v and alpha."""
    leaves = {name: a[name].detach().requires_grad_() for name in ("q", "k", "v", "alpha")}
    out = attend(**leaves, elevation=a["elevation"], order=order)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weight.to(out.dtype))]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


TERRAINS: dict[str, Callable[[int, int], Tensor]] = {
    "level": lambda B, N: torch.full((B, N), 4370.0),
    "extremes": lambda B, N: 9000.0 * (torch.arange(B * N).view(B, N) % 3 == 0),
    "slope": lambda B, N: torch.linspace(-400.0, 9000.0, N).flip(0).expand(B, N),
    "terraces": lambda B, N: (torch.arange(B * N).view(B, N) * 7 % 5) * 500.0,
}


@pytest.mark.parametrize("terrain", TERRAINS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 37, 129, 257])
def test_any_terrain_equals_the_formula(terrain: str, tokens: int) -> None:
    a = make_arguments(tokens=tokens, width=16) | {"elevation": TERRAINS[terrain](2, tokens).double()}
    order = random_orders(2, tokens)
    exact = differentiate(elevation_attention_reference, a, order)
    assert_same(differentiate(elevation_attention, a, order), exact, 1e-12)


@pytest.mark.parametrize("tokens", [63, 64, 65, 128, 200])
@pytest.mark.parametrize("shared", [True, False])
def test_bands_and_head_groups_are_merged_exactly(
    tokens: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BAND", 64)
    monkeypatch.setattr(cpu, "_GROUP_ELEMENTS", 1)
    a = make_arguments(tokens=tokens, width=8)
    a |= {"alpha": a["alpha"][:1] if shared else a["alpha"]}
    order = random_orders(2, tokens)
    exact = differentiate(elevation_attention_reference, a, order)
    assert_same(differentiate(elevation_attention, a, order), exact, 1e-12)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 300),
    width=st.sampled_from([1, 4, 12, 16, 48, 96]),
    alpha=st.floats(-3, 8),
    scale=st.sampled_from([None, 0.3, 2.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_equals_the_formula(
    batch: int, heads: int, tokens: int, width: int, alpha: float, scale: float | None, seed: int
) -> None:
    a = make_arguments(batch, heads, tokens, width, seed)
    a["alpha"] = torch.full((heads,), alpha, dtype=torch.float64)
    found, exact = (
        differentiate(partial(attend, scale=scale), a, random_orders(batch, tokens, seed))
        for attend in (elevation_attention, elevation_attention_reference)
    )
    assert_same(found, exact, 1e-11)


@pytest.mark.parametrize("alpha", [2.0, 5.0, 0.0, -0.7])
@pytest.mark.parametrize(
    ("dtype", "floor"), [(torch.float32, 5e-7), (torch.bfloat16, 0.0), (torch.float16, 0.0)]
)
def test_errors_are_at_most_twice_those_of_pytorch_in_the_same_dtype(
    alpha: float, dtype: torch.dtype, floor: float
) -> None:
    # A few elements and the processor's order of summation decide the largest error of a single draw.
    draws = [results_of_draw(alpha, dtype, seed) for seed in range(15)]
    for output in zip(*draws, strict=True):
        for summary in (median_largest_error, joint_error):
            error, own = (summary(output, which) for which in (0, 1))
            assert error <= 2 * max(own, floor)


Result = tuple[Tensor, Tensor, Tensor]
"""Our result, PyTorch's and the exact one."""


def results_of_draw(alpha: float, dtype: torch.dtype, seed: int) -> list[Result]:
    """Return the results for each output."""
    a = make_arguments(batch=1, heads=2, tokens=1030, width=96, seed=seed)
    a["elevation"] = a["elevation"].float()
    a["alpha"] = torch.full((2,), alpha)
    low = {name: x if name in ("elevation", "alpha") else x.to(dtype) for name, x in a.items()}
    exact = differentiate(elevation_attention_reference, {name: x.double() for name, x in low.items()})
    both = (differentiate(f, low) for f in (elevation_attention, masked))
    return list(zip(*both, exact, strict=True))


def median_largest_error(results: Sequence[Result], which: int) -> float:
    """Return the median over draws of the largest error, relative to the largest value."""
    return statistics.median(
        float((result[which].double() - result[2]).abs().max() / result[2].abs().max()) for result in results
    )


def joint_error(results: Sequence[Result], which: int) -> float:
    """Return the root mean square error of all elements of all draws, relative to that of the values."""
    errors = torch.cat([(result[which].double() - result[2]).flatten() for result in results])
    return float(errors.norm() / torch.cat([result[2].flatten() for result in results]).norm())


def masked(q: Tensor, k: Tensor, v: Tensor, elevation: Tensor, alpha: Tensor, order: None) -> Tensor:
    """Compute PyTorch's attention with the bias as its mask."""
    rise = (elevation[:, None, None, :] - elevation[:, None, :, None]).clamp_min(0.0) / 1000.0
    bias = (-alpha[:, None, None] * rise).to(q.dtype)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def test_repeated_calls_agree_bit_for_bit() -> None:
    a = {name: x.float() for name, x in make_arguments(tokens=300, width=16).items()}
    order = random_orders(2, 300)
    first, second = (differentiate(elevation_attention, a, order) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("order", ["identity", "reverse"])
def test_an_order_and_its_inverse_are_not_confused(order: str) -> None:
    a = make_arguments(tokens=40)
    rows = torch.arange(40).expand(2, -1)
    rows = rows if order == "identity" else rows.flip(1)
    assert_same([elevation_attention(**a, order=rows)], [elevation_attention(**a)[:, :, rows[0]]], 1e-13)


def test_without_elevation_it_is_plain_attention() -> None:
    a = make_arguments(tokens=20)
    order = random_orders(2, 20)
    out = elevation_attention(a["q"], a["k"], a["v"], order=order)
    plain = functional.scaled_dot_product_attention(a["q"], a["k"], a["v"])
    for b in range(2):
        torch.testing.assert_close(out[b], plain[b][:, order[b]], rtol=1e-12, atol=1e-12)


def test_no_tensor_has_size_n_x_n() -> None:
    a = {name: x.float() for name, x in make_arguments(1, 1, 3000, 16).items()}
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            parts = result if isinstance(result, tuple | list) else [result]
            largest.extend(x.untyped_storage().nbytes() for x in parts if isinstance(x, Tensor))
            return result

    q, k, v = a["q"], a["k"], a["v"]
    alpha = a["alpha"][:1]
    with Watch():
        out, lse = cpu.forward(q, k, v, a["elevation"], alpha, None, 0.25)
        cpu.backward(out, q, k, v, out, lse, a["elevation"], alpha, None, 0.25)
    assert max(largest) <= 4 * cpu._BAND**2


def test_the_operator_is_registered_in_full() -> None:
    a = {name: x.detach().requires_grad_(name != "elevation") for name, x in make_arguments().items()}
    operator = torch.ops.aqtopo_kernels.elevation_attention.default
    for terrain in ((a["elevation"], a["alpha"]), (None, None)):
        opcheck(operator, (a["q"], a["k"], a["v"], *terrain, random_orders(2, 7), 0.5))


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    a = make_arguments()
    order = random_orders(2, 7)
    compiled = torch.compile(elevation_attention, fullgraph=True)
    assert_same(differentiate(compiled, a, order), differentiate(elevation_attention, a, order), 1e-14)


def test_a_shape_beyond_32_bits_works_on_meta_tensors() -> None:
    shape = (4, 64, 2**17, 128)  # 2^32 elements, none of them there
    q, k, v = (torch.empty(shape, device="meta", dtype=torch.float16) for _ in range(3))
    out = elevation_attention(q, k, v, torch.empty(4, 2**17, device="meta"), torch.empty(1, device="meta"))
    assert out.shape == shape


def test_debugging_skips_meta_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AQTOPO_KERNELS_DEBUG", "1")
    q = torch.empty((2, 3, 7, 4), device="meta")
    order = torch.empty((2, 7), device="meta", dtype=torch.int64)
    assert elevation_attention(q, q, q, order=order).shape == q.shape


def test_only_the_reference_can_be_requested_on_every_device() -> None:
    a = make_arguments()
    asked = elevation_attention(**a, backend="reference")
    assert torch.equal(asked, elevation_attention_reference(**a))
    with pytest.raises(ValueError, match="has the backend 'cpu' on 'cpu', but got backend='triton'"):
        elevation_attention(**a, backend="triton")
    with pytest.raises(ValueError, match="backend 'cuda'; choose from cpu, triton, reference"):
        elevation_attention(**a, backend="cuda")


def test_debugging_finds_an_order_that_is_no_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    a = make_arguments()
    order = random_orders(2, 7)
    order[1, 0] = order[1, 1]
    monkeypatch.setenv("AQTOPO_KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"order of shape \(2, 7\) the rows of sample\(s\) \[1\]"):
        elevation_attention(**a, order=order)


BAD: list[tuple[str, Callable[[Arguments], Tensor | None], str]] = [
    ("q", lambda a: a["q"][0], r"q \(3, 7, 4\)"),
    ("elevation", lambda a: a["elevation"].long(), r"got torch\.int64"),
    ("k", lambda a: a["k"][:, :, :5], r"k \(2, 3, 5, 4\)"),
    ("v", lambda a: a["v"].float(), r"v torch\.float32"),
    ("k", lambda a: a["k"].to("meta"), "cpu, meta, cpu"),
    ("elevation", lambda a: a["elevation"][:, 1:], r"\(B, N\) = \(2, 7\).*got \(2, 6\)"),
    ("elevation", lambda a: a["elevation"].bfloat16(), r"torch\.bfloat16.*round heights"),
    ("alpha", lambda a: a["alpha"][:2], r"\(1,\) or \(H,\) = \(3,\).*got \(2,\)"),
    ("alpha", lambda a: a["alpha"].long(), r"floating alpha, but got torch\.int64"),
    ("alpha", lambda a: a["alpha"].to("meta"), "cpu, cpu, meta"),
    ("order", lambda a: a["elevation"].long()[0], r"order of shape \(B, N\) = \(2, 7\).*got \(7,\)"),
    ("order", lambda a: a["elevation"], r"int32 or int64, but got torch\.float64"),
    ("order", lambda a: a["elevation"].long().to("meta"), "cpu, meta"),
    ("elevation", lambda a: a["elevation"].requires_grad_(), "no gradient"),
    ("alpha", lambda _: None, "both elevation and alpha, or neither"),
    ("scale", lambda _: 0.0, r"positive scale, but got 0\.0; negate q if"),
    ("scale", lambda _: -1.0, r"positive scale, but got -1\.0; negate q if"),
    ("scale", lambda _: float("nan"), "positive scale, but got nan"),
    ("scale", lambda _: math.inf, "positive scale, but got inf"),
]


@pytest.mark.parametrize(("name", "make_bad", "message"), BAD)
def test_invalid_arguments_are_refused_by_name(
    name: str, make_bad: Callable[[Arguments], Tensor | None], message: str
) -> None:
    a = make_arguments()
    with pytest.raises(ValueError, match=message):
        elevation_attention(**a | {name: make_bad(a)})
