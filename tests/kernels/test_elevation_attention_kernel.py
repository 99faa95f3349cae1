import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference
from tests.kernels import launchers
from tests.kernels.launchers import ON_DEVICE, Launcher

pytest.importorskip("triton", reason="triton is not installed: pip install -e .[triton]")

Arguments = dict[str, Any]
FLOORS = {torch.float32: 5e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Errors of a rounding or two to each dtype, relative to the largest value."""
NAMES = ("out", "dq", "dk", "dv", "dalpha")

slow_if_emulated = pytest.mark.parametrize(
    "launcher", ["interpreter", pytest.param("gfx90a", marks=pytest.mark.slow), *ON_DEVICE], indirect=True
)


def make_arguments(
    tokens: int,
    width: int = 32,
    *,
    batch: int = 1,
    heads: int = 1,
    alpha: float = 2.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, width)
    dout, q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(4))
    elevation = 5000 * torch.rand((batch, tokens), generator=generator)
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    strengths = torch.full((heads,), alpha)
    return {
        "dout": dout, "q": q, "k": k, "v": v,
        "elevation": elevation, "alpha": strengths, "order": order, "scale": width**-0.5,
    }  # fmt: skip


def attend(launcher: Launcher, a: Arguments) -> dict[str, Tensor]:
    out, lse, dq, dk, dv, dalpha = launcher.run(launchers.attend, *a.values())
    return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv, "dalpha": dalpha}


def reference(a: Arguments, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the formula's result and its autograd gradients, computed and stored in dtype."""
    names = ["q", "k", "v"] if a["alpha"] is None else ["q", "k", "v", "alpha"]
    leaves = {name: a[name].to(dtype).requires_grad_() for name in names}
    elevation = None if a["elevation"] is None else a["elevation"].to(dtype)
    out = elevation_attention_reference(
        leaves["q"], leaves["k"], leaves["v"], elevation, leaves.get("alpha"), a["order"], a["scale"]
    )
    gradients = torch.autograd.grad(out, list(leaves.values()), a["dout"].to(dtype))
    return {"out": out.detach()} | {f"d{name}": x for name, x in zip(names, gradients, strict=True)}


def assert_as_good_as_pytorch(a: Arguments, results: dict[str, Tensor], floor: float) -> None:
    """The error against float64 is at most twice that of the formula in the inputs' dtype, or the floor.

    dalpha is one number a head, a sum that nearly cancels: its error is a single draw, for the kernels as for
    PyTorch, and the quotient of two single draws says nothing. So these tests have eight heads.
    """
    exact, own = reference(a, torch.float64), reference(a, a["q"].dtype)
    for name in exact:
        size = exact[name].abs().max().clamp_min(1e-3)
        error = ((results[name].double() - exact[name]).abs().max() / size).item()
        allowed = ((own[name].double() - exact[name]).abs().max() / size).item()
        assert error <= 2 * max(allowed, floor), f"{name}: {error:.1e}, PyTorch's own {allowed:.1e}"


def test_the_kernels_run_in_the_interpreter(interpreter: Launcher) -> None:
    assert interpreter.run(launchers.is_interpreted) == ["InterpretedFunction"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [2.0, 5.0, 0.0, -0.7])
def test_float32_is_as_exact_as_pytorch(interpreter: Launcher, alpha: float) -> None:
    a = make_arguments(tokens=256, width=96, heads=8, alpha=alpha)
    assert_as_good_as_pytorch(a, attend(interpreter, a), floor=FLOORS[torch.float32])


def test_float16_is_as_exact_as_pytorch(interpreter: Launcher) -> None:
    a = make_arguments(tokens=128, width=96, heads=8, dtype=torch.float16)
    assert_as_good_as_pytorch(a, attend(interpreter, a), floor=FLOORS[torch.float16])


@pytest.mark.slow
@pytest.mark.parametrize("terrain", [True, False], ids=["bias and order", "plain"])
@pytest.mark.parametrize("width", [96, 112])
@pytest.mark.parametrize(
    ("launcher", "dtype"),
    [
        ("gfx90a", torch.float32),
        ("gfx90a", torch.bfloat16),
        ("gfx90a", torch.float16),
        ("gfx942", torch.bfloat16),
        *(("device", dtype) for dtype in FLOORS if torch.cuda.is_available()),
    ],
    indirect=["launcher"],
)
def test_compiled_code_is_as_exact_as_pytorch(
    launcher: Launcher, dtype: torch.dtype, width: int, terrain: bool
) -> None:
    a = make_arguments(tokens=95, width=width, heads=8, dtype=dtype)
    a = a if terrain else a | {"elevation": None, "alpha": None, "order": None}
    assert_as_good_as_pytorch(a, attend(launcher, a), floor=FLOORS[dtype])


@slow_if_emulated
@given(
    tokens=st.sampled_from([1, 2, 31, 33, 77, 128, 130]),
    width=st.sampled_from([16, 48, 112]),
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    alpha=st.floats(-1.0, 6.0),
    ordered=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_agrees_with_the_formula(
    launcher: Launcher,
    tokens: int,
    width: int,
    batch: int,
    heads: int,
    alpha: float,
    ordered: bool,
    seed: int,
) -> None:
    a = make_arguments(tokens, width, batch=batch, heads=heads, alpha=alpha, seed=seed)
    a["order"] = a["order"].int() if ordered else None
    results, exact = attend(launcher, a), reference(a, torch.float64)
    for name in NAMES:
        torch.testing.assert_close(results[name].double(), exact[name], rtol=2e-5, atol=2e-5)


@slow_if_emulated
@pytest.mark.parametrize("width", [160, 240, 256])
def test_wide_heads_agree_with_the_formula(launcher: Launcher, width: int) -> None:
    a = make_arguments(tokens=40, width=width, heads=8)
    assert_as_good_as_pytorch(a, attend(launcher, a), floor=5e-7)


def test_the_scale_can_differ_from_that_of_the_width(launcher: Launcher) -> None:
    """A model with a local bias has wider heads, and keeps the factor of its own width."""
    a = make_arguments(tokens=40, width=32) | {"scale": 16**-0.5}
    assert_as_good_as_pytorch(a, attend(launcher, a), floor=5e-7)


@pytest.mark.parametrize("elevation", [0.0, 9000.0], ids=["sea level", "plateau"])
def test_flat_terrain_is_plain_attention(launcher: Launcher, elevation: float) -> None:
    a = make_arguments(tokens=65) | {"elevation": torch.full((1, 65), elevation)}
    level = attend(launcher, a)
    plain = attend(launcher, a | {"elevation": None, "alpha": None})
    for name in ("out", "lse", "dq", "dk", "dv"):
        torch.testing.assert_close(level[name], plain[name], rtol=0, atol=2e-6)
    assert level["dalpha"].item() == 0.0


def test_the_extremes_of_terrain_stay_finite(launcher: Launcher) -> None:
    a = make_arguments(tokens=66, heads=8, alpha=50.0)
    a["elevation"] = torch.tensor([0.0, 9000.0]).repeat(1, 33)
    results = attend(launcher, a)
    assert all(result.isfinite().all() for result in results.values())
    assert_as_good_as_pytorch(a, results, floor=5e-7)


def orders(a: Arguments) -> list[Tensor]:
    """Identity, reversal and random permutations, each (B, N)."""
    batch, tokens = a["order"].shape
    forward = torch.arange(tokens).expand(batch, -1)
    return [forward, forward.flip(1), a["order"]]


def with_order(a: Arguments, order: Tensor) -> Arguments:
    """The same problem, with the rows of the output (and so of dout) in `order`."""
    rows = order[:, None, :, None].expand_as(a["dout"])
    return a | {"order": order, "dout": a["dout"].gather(2, rows)}


def selecting(a: Arguments, seed: int = 0) -> tuple[Arguments, Tensor]:
    """Arguments in which every token attends to one key alone, and that key (B, N).

    All products and sums are whole numbers below 2^24, or zero, so that every order of summation gives equal
    bits: whichever BLAS the interpreter's `tl.dot` runs on, wherever a row lies in its blocks, and whether
        the compiler fuses multiply-adds or starts a product from the bias. So the kernels' factor of the
        scores, scale x log2(e), is 1, heights are multiples of 2^10 m, and a rise of 2^10 m lowers a score by
        5.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, _, tokens, width = a["k"].shape
    codes = torch.tensor([[1.0 - 2 * (n >> bit & 1) for bit in range(width)] for n in range(tokens)])
    chosen = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    whole = {name: torch.randint(-8, 9, a[name].shape, generator=generator).float() for name in ("v", "dout")}
    k = codes.expand_as(a["k"]).contiguous()
    q = 4096 * codes[chosen][:, None].expand_as(a["q"]).contiguous()
    elevation = 1024.0 * torch.randint(0, 8, (batch, tokens), generator=generator)
    alpha = torch.full_like(a["alpha"], 5 * math.log(2) / 1.024)
    terrain = {"elevation": elevation, "alpha": alpha, "scale": math.log(2)}
    return a | whole | terrain | {"q": q, "k": k}, chosen


def test_an_order_moves_whole_rows_of_the_output_bit_for_bit(launcher: Launcher) -> None:
    a, chosen = selecting(make_arguments(tokens=70, batch=2))
    rows = chosen[:, None, :, None].expand_as(a["v"])
    out, dv = a["v"].gather(2, rows), torch.zeros_like(a["v"]).scatter(2, rows, a["dout"])
    for order in orders(a):
        moved = attend(launcher, with_order(a, order))
        assert torch.equal(moved["out"], out.gather(2, order[:, None, :, None].expand_as(out)))
        assert torch.equal(moved["dv"], dv)


@slow_if_emulated
def test_an_order_changes_nothing_but_the_place_of_the_rows(launcher: Launcher) -> None:
    a = make_arguments(tokens=70, batch=2)
    raster = attend(launcher, a | {"order": None})
    for order in orders(a):
        moved = attend(launcher, with_order(a, order))
        expected = raster | {"out": with_order(a | {"dout": raster["out"]}, order)["dout"]}
        for name, result in moved.items():
            torch.testing.assert_close(result, expected[name], rtol=0, atol=3e-6)


def test_repeated_calls_agree_bit_for_bit(launcher: Launcher) -> None:
    a = make_arguments(tokens=90, heads=2)
    first, second = attend(launcher, a), attend(launcher, a)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strides_do_not_matter(launcher: Launcher) -> None:
    a = make_arguments(tokens=50, batch=2, heads=2)
    strided = {name: a[name].permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0) for name in ("q", "dout")}
    strided["k"] = a["k"].transpose(1, 2).contiguous().transpose(1, 2)
    strided["elevation"] = a["elevation"].t().contiguous().t()
    expected, got = attend(launcher, a), attend(launcher, a | strided)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_lse_is_the_logarithm_of_the_softmax_sum(launcher: Launcher) -> None:
    a = make_arguments(tokens=40)
    rise = (a["elevation"][:, None, :] - a["elevation"][:, :, None]).clamp_min(0.0)[:, None] / 1000
    scores = (a["q"] @ a["k"].transpose(-1, -2)) / math.sqrt(32) - 2.0 * rise
    expected = scores.logsumexp(-1) * math.log2(math.e)
    torch.testing.assert_close(attend(launcher, a)["lse"], expected, rtol=1e-5, atol=1e-5)


def test_one_strength_for_all_heads_gets_one_gradient(launcher: Launcher) -> None:
    a = make_arguments(tokens=40, heads=3)
    each = attend(launcher, a)["dalpha"]
    one = attend(launcher, a | {"alpha": torch.tensor([2.0])})["dalpha"]
    torch.testing.assert_close(one, each.sum(0, keepdim=True))


@pytest.mark.parametrize("width", [24, 272])
def test_refuses_heads_it_has_no_kernels_for(interpreter: Launcher, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 16 up to 256, but got D = {width}"):
        attend(interpreter, make_arguments(tokens=4, width=width))


def test_refuses_a_head_beyond_32_bits(interpreter: Launcher) -> None:
    q = torch.empty((1, 1, 2**20, 4096), device="meta")[..., :16]
    a = make_arguments(tokens=4, width=16) | {"q": q, "k": q, "v": q}
    with pytest.raises(ValueError, match=r"N = 1048576 tokens of stride 4096 exceed 2\^31"):
        interpreter.run(launchers.attend, None, *list(a.values())[1:])


def test_refuses_a_result_beyond_32_bits(interpreter: Launcher) -> None:
    q = torch.empty((1, 2**8, 2**16, 128), device="meta")  # a head is small, but a row holds all heads
    with pytest.raises(ValueError, match=r"65536 tokens of stride 32768 exceed 2\^31"):
        interpreter.run(launchers.attend, None, q, q, q, None, None, None, 1.0)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_operator_runs_these_kernels_forward_and_backward(interpreter: Launcher, heads: int) -> None:
    a = make_arguments(tokens=33, heads=heads, batch=2)
    results, launched = interpreter.run(launchers.differentiate, **a)
    assert launched == ["forward", "backward"]
    for name, result, exact in zip(NAMES, results, reference(a, torch.float64).values(), strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.slow
def test_the_operator_is_registered_in_full_for_these_kernels(interpreter: Launcher) -> None:
    a = make_arguments(tokens=5, width=16, batch=2, heads=2)
    found = interpreter.run(launchers.check_operator, **a)
    assert set(found.values()) == {"SUCCESS"}


def test_by_bits_rounds_to_nearest_and_truncates_towards_zero(launcher: Launcher) -> None:
    x = torch.rand(1024, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-60, 4).repeat(16)
    rounded, cut, summed = launcher.run(launchers.to_bfloat16, x)
    assert torch.equal(rounded, x.bfloat16())
    assert torch.equal(cut.float(), summed)
    assert ((x - summed) >= 0).all()
    assert ((x - summed) <= x * 2.0**-7).all()


def test_truncated_weights_sum_to_one_as_exactly_as_rounded_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand((256, 2048), generator=generator).mul(6).exp()
    values = torch.randn((2048, 16), generator=generator)
    exact = weights.double() / weights.double().sum(1, keepdim=True) @ values.double()
    cut = (weights.view(torch.int32) & -65536).view(torch.float32)
    by_cut = (cut @ values) / cut.sum(1, keepdim=True)
    rounded = weights.bfloat16().float()
    by_rounding = (rounded @ values) / weights.sum(1, keepdim=True)
    assert (by_cut - exact).square().mean() < 1.2 * (by_rounding - exact).square().mean()
