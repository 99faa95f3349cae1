from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from aqtopo_kernels import wind_gather, wind_scatter
from aqtopo_kernels.order import invert_order
from aqtopo_kernels.wind_gather.reference import wind_gather_reference, wind_scatter_reference


def random_case(batch: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    return torch.randn((batch, tokens, 3), generator=generator, dtype=torch.float64), order


cases = {"batch": st.integers(1, 4), "tokens": st.integers(1, 40), "seed": st.integers(0, 2**31)}


@given(**cases, narrow=st.booleans())
@settings(max_examples=40, deadline=None)
def test_row_r_is_token_order_r_and_scatter_puts_it_back(
    batch: int, tokens: int, seed: int, narrow: bool
) -> None:
    x, order = random_case(batch, tokens, seed)
    gathered = wind_gather(x, order.int() if narrow else order)
    for b in range(batch):
        assert torch.equal(gathered[b], x[b][order[b]])
    assert torch.equal(wind_scatter(gathered, order), x)


@given(**cases)
@settings(max_examples=40, deadline=None)
def test_the_inverse_order_gives_the_position_of_each_token(batch: int, tokens: int, seed: int) -> None:
    _, order = random_case(batch, tokens, seed)
    inverse = invert_order(order.int())
    assert torch.equal(order.gather(1, inverse), torch.arange(tokens).expand(batch, tokens))


@pytest.mark.parametrize("batch_of_add", [1, 2])
def test_the_added_tensor_is_in_the_new_order(batch_of_add: int) -> None:
    x, order = random_case(2, 5, seed=1)
    add = torch.arange(batch_of_add * 15, dtype=torch.float64).view(batch_of_add, 5, 3)
    assert torch.equal(wind_gather(x, order, add), wind_gather(x, order) + add)


def test_gradients_go_back_to_the_tokens_they_came_from() -> None:
    x, order = random_case(2, 5, seed=2)
    weight = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x.requires_grad_()
    add = torch.zeros(1, 5, 3, dtype=torch.float64, requires_grad=True)
    gathered_gradient, add_gradient = torch.autograd.grad(
        (wind_gather(x, order, add) * weight).sum(), [x, add]
    )
    (scattered_gradient,) = torch.autograd.grad((wind_scatter(x, order) * weight).sum(), x)
    assert torch.equal(gathered_gradient, wind_scatter(weight, order))
    assert torch.equal(scattered_gradient, wind_gather(weight, order))
    assert torch.equal(add_gradient, weight.sum(0, keepdim=True))


def test_reads_tokens_of_any_strides() -> None:
    x, order = random_case(3, 8, seed=4)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(wind_gather(strided, order), wind_gather(x, order))
    broadcast = x[:1].expand(3, -1, -1)
    assert torch.equal(wind_scatter(broadcast, order), wind_scatter(broadcast.contiguous(), order))


def test_equals_the_reference_bit_for_bit() -> None:
    x, order = random_case(3, 17, seed=5)
    add = torch.randn(1, 17, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert torch.equal(wind_gather(x, order, add), wind_gather_reference(x, order, add))
    assert torch.equal(wind_scatter(x, order), wind_scatter_reference(x, order))


def test_the_sum_takes_the_wider_dtype() -> None:
    x, order = random_case(2, 5, seed=7)
    assert wind_gather(x.bfloat16(), order, x.float()).dtype == torch.float32


def test_the_operators_are_registered_in_full() -> None:
    x, order = random_case(2, 5, seed=8)
    x.requires_grad_()
    for add in (None, torch.zeros(1, 5, 3, dtype=torch.float64, requires_grad=True), x):
        opcheck(torch.ops.aqtopo_kernels.wind_gather.default, (x, order, add))
    opcheck(torch.ops.aqtopo_kernels.wind_scatter.default, (x, order))


def test_debugging_finds_an_order_that_is_no_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    x, order = random_case(2, 5, seed=9)
    monkeypatch.setenv("AQTOPO_KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"wind_scatter needs .* \[0, 1\] are not"):
        wind_scatter(x, torch.zeros_like(order))


BAD: list[tuple[Callable[[Tensor, Tensor], Tensor], str]] = [
    (lambda x, order: wind_gather(x[0], order), r"tokens \(B, N, D\), but got \(5, 3\)"),
    (lambda x, order: wind_gather(x, order[:, 1:]), r"\(B, N\) = \(2, 5\), but got \(2, 4\)"),
    (lambda x, order: wind_gather(x, order.double()), r"wind_gather needs .*got torch\.float64"),
    (lambda x, order: wind_scatter(x, order.double()), r"wind_scatter needs .*got torch\.float64"),
    (lambda x, order: wind_gather(x, order.to("meta")), "they are on cpu, meta"),
    (lambda x, order: wind_gather(x, order, x[:, 1:]), r"shape \(2, 5, 3\).*got \(2, 4, 3\)"),
    (lambda x, order: wind_gather(x, order, x.to("meta")), "device cpu, but got meta"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_invalid_arguments_are_refused_by_name(
    call: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(*random_case(2, 5, seed=0))
