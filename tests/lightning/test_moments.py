"""Gradients tell the tensors of one block from those of another; what they leave to chance is said."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.checkpoint.manifest import TensorInfo
from aqtopo.lightning.moments import ambiguous_parameters, moments_fit

PAIRS = ("norm1", "attn.qkv"), ("norm2", "mlp.fc1")


def gradients(bias: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and gradients of three blocks of norms with a Linear behind, on random tokens and losses."""
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {}
    for block in range(3):
        for norm, linear in PAIRS:
            layer = nn.Linear(16, 24, bias=bias)
            own = {f"{norm}.weight": 1 + 0.3 * torch.randn(16), f"{norm}.bias": 0.3 * torch.randn(16)}
            own |= {f"{linear}.{name}": tensor.detach() for name, tensor in layer.named_parameters()}
            weights |= {f"blocks.{block}.{name}": tensor.requires_grad_() for name, tensor in own.items()}
    loss = torch.zeros(())
    for block in range(3):
        for norm, linear in PAIRS:
            w = {n.removeprefix(f"blocks.{block}."): t for n, t in weights.items() if f".{block}." in n}
            tokens = functional.layer_norm(torch.randn(40, 16), (16,), w[f"{norm}.weight"], w[f"{norm}.bias"])
            behind = functional.linear(tokens, w[f"{linear}.weight"], w.get(f"{linear}.bias"))
            loss = loss + (functional.dropout(behind, 0.2) * torch.randn(40, 24)).square().sum()
    loss.backward()
    found = {name: tensor.grad for name, tensor in weights.items() if tensor.grad is not None}
    return {name: tensor.detach() for name, tensor in weights.items()}, found


def swapped(tensors: Mapping[str, Tensor], one: str, other: str) -> dict[str, Tensor]:
    def new(name: str) -> str:
        return name.replace(one, "#").replace(other, one).replace("#", other)

    return {name: tensors[new(name)] for name in tensors}


def listed(tensors: Mapping[str, Tensor]) -> list[TensorInfo]:
    return [TensorInfo(name=n, shape=tuple(t.shape), dtype="float32") for n, t in tensors.items()]


def test_right_moments_pass_and_leave_no_parameter_ambiguous() -> None:
    for bias in (True, False):
        weights, exp_avg = gradients(bias)
        fits = moments_fit(weights, exp_avg)
        assert fits == dict.fromkeys(weights, True)
        assert not ambiguous_parameters(listed(weights), fits)


def test_moments_of_another_block_norm_or_part_fail() -> None:
    weights, exp_avg = gradients()
    for one, other in (("blocks.0", "blocks.2"), ("1.norm1", "1.norm2"), ("1.attn.qkv", "2.attn.qkv")):
        wrong = swapped(exp_avg, one, other)
        fits = moments_fit(weights, wrong)
        assert not any(fits[f"blocks.{i}.{n}.weight"] for i, n in _touched(one, other))
        assert {t.name for t in ambiguous_parameters(listed(weights), fits)} >= {
            f"blocks.{i}.{n}.weight" for i, n in _touched(one, other)
        }
    within = exp_avg | {
        "blocks.1.norm1.weight": exp_avg["blocks.1.norm1.bias"],
        "blocks.1.norm1.bias": exp_avg["blocks.1.norm1.weight"],
    }
    assert not moments_fit(weights, within)["blocks.1.norm1.weight"]


def _touched(one: str, other: str) -> list[tuple[int, str]]:
    if one.startswith("blocks"):
        return [(i, norm) for i in (0, 2) for norm in ("norm1", "norm2")]
    return [(1, "norm1"), (1, "norm2")] if "norm" in one else [(1, "norm1"), (2, "norm1")]


def test_zero_moments_pass_for_no_parameter() -> None:
    weights, exp_avg = gradients()
    still = {name: torch.zeros_like(tensor) for name, tensor in exp_avg.items()}
    assert not any(moments_fit(weights, still).values())


def test_equal_shapes_without_a_tested_neighbour_are_ambiguous() -> None:
    a, b, c = (
        TensorInfo(name=n, shape=(3,), dtype="float32") for n in ("head.0.bias", "head.2.bias", "d.bias")
    )
    assert ambiguous_parameters([a, b], {}) == [a, b]
    assert ambiguous_parameters([a, b], {"head.0.bias": True}) == []  # the other is the last of its shape
    assert ambiguous_parameters([a, b, c], {"head.0.bias": True}) == [b, c]
    unique = TensorInfo(name="head.2.weight", shape=(3, 3), dtype="float32")
    assert ambiguous_parameters([a, b, unique], {}) == []  # b stands beside its weight, and a is the last
    assert ambiguous_parameters([a, b, unique], {"head.2.bias": False, "head.0.bias": False}) == [a, b]
