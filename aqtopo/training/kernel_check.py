"""Check of the kernels against their references on a small case."""

from collections.abc import Callable

import torch
from torch import Tensor

from aqtopo.model.locality import EXTRA_COLUMNS
from aqtopo_kernels import elevation_attention, wind_gather
from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference
from aqtopo_kernels.wind_gather.reference import wind_gather_reference

TOKENS = 192
TOLERANCE = 1e-3
"""Tolerance relative to the largest value: hundreds of times the fp32 rounding error."""

ALPHA_TOLERANCE = 3e-2
"""Tolerance for the gradient of alpha, a sum over all pairs of tokens with cancellation."""


def kernel_problem(heads: int, head_dim: int, device: torch.device) -> str | None:
    """Run attention with elevation bias and the gather, forward and backward; return the problem or None.

    The kernels are compiled for the width of a head, `head_dim`; see `kernel_head_widths`.
    """
    try:
        errors = _errors(heads, head_dim, device)
    except ValueError as error:  # the caller raises it on all ranks
        return (
            f"heads of {head_dim} columns (model.dim / model.heads; with model.local_bias {EXTRA_COLUMNS} "
            f"more) cannot be computed on {device}: {error}"
        )
    if all(error <= TOLERANCE for error in errors):  # false for NaN
        return None
    return (
        f"the kernels for heads of {head_dim} columns differ from their references by {max(errors):.2g} "
        f"(allowed {TOLERANCE:g}) on {device}. Exclude the node (sbatch --exclude=NODE) and report it to the "
        "operators."
    )


def _errors(heads: int, head_dim: int, device: torch.device) -> list[float]:
    """Return the errors of the attention, its gradients and the gather, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, TOKENS, head_dim, generator=generator) for _ in range(3))
    elevation = 4000.0 * torch.rand(1, TOKENS, generator=generator)
    order = torch.randperm(TOKENS, generator=generator)[None]
    alpha = torch.tensor([2.0])
    inputs = [x.to(device) for x in (q, k, v, alpha)]
    places = elevation.to(device), order.to(device)
    *errors, alpha_error = (
        _difference(got, expected)
        for got, expected in zip(
            _with_gradients(elevation_attention, inputs, *places),
            _with_gradients(elevation_attention_reference, inputs, *places),
            strict=True,
        )
    )
    errors.append(alpha_error * TOLERANCE / ALPHA_TOLERANCE)
    tokens = inputs[0][:, 0]
    gathered = _difference(wind_gather(tokens, places[1]), wind_gather_reference(tokens, places[1]))
    return [*errors, gathered]


def _with_gradients(
    attention: Callable[..., Tensor], inputs: list[Tensor], elevation: Tensor, order: Tensor
) -> list[Tensor]:
    """Return the output and the gradients of its weighted sum."""
    q, k, v, alpha = (x.detach().clone().requires_grad_() for x in inputs)
    output = attention(q, k, v, elevation, alpha, order)
    weights = torch.linspace(-1.0, 1.0, output.numel(), device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), (q, k, v, alpha))]


def _difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())
