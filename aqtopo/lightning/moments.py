"""Test that Adam's first moments belong to the parameters that they are assigned to.

Shapes do not distinguish the tensors of equal blocks, but gradients do. If a LayerNorm with weight w and
bias b is followed by a Linear with weight W and bias c, the loss does not change when w_j and b_j are
multiplied by a number and column j of W is divided by it. Hence at every step

    sum_i W_ij dL/dW_ij = w_j dL/dw_j + b_j dL/db_j    and    dL/db = W^T dL/dc,

for any data, and with dropout after them and clipping. `exp_avg` averages gradients over about ten steps, in
which weights change little. With the right moments both sides agree (cosine of at least 0.9999 in a run saved
by Lightning, 16 wide); with the moments of another block they are unrelated.

Parameters outside such pairs are assumed to follow the other parameters of their module. The test cannot
detect an order that keeps every norm, every Linear behind one, and every shape in place, but swaps other
tensors within a block.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from aqtopo.checkpoint.manifest import TensorInfo

FED_BY = {"norm1": "attn.qkv", "norm2": "mlp.fc1", "norm": "head.0"}
"""Linear that follows each LayerNorm, in the same module."""

AGREEMENT = 0.9
"""Least cosine; unrelated vectors of 16 elements reach it once in a million."""

Tensors = Mapping[str, Tensor]


def moments_fit(weights: Tensors, exp_avg: Tensors) -> dict[str, bool]:
    """Return, for each parameter in a pair of LayerNorm and Linear, True if the pair passes the test."""
    found: dict[str, bool] = {}
    for name in weights:
        module, _, last = name.removesuffix(".weight").rpartition(".")
        linear = ".".join(part for part in (module, FED_BY.get(last, "")) if part)
        norm = name.removesuffix(".weight")
        needed = {f"{norm}.weight", f"{norm}.bias", f"{linear}.weight"}
        if last in FED_BY and needed <= exp_avg.keys():
            fits = all(_cosine(*sides) >= AGREEMENT for sides in _sides(norm, linear, weights, exp_avg))
            parts = (f"{owner}.{part}" for owner in (norm, linear) for part in ("weight", "bias"))
            found |= {part: fits for part in parts if part in exp_avg}
    return found


def _sides(norm: str, linear: str, weights: Tensors, exp_avg: Tensors) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both sides of each equation."""
    w, b, matrix = (weights[name].double() for name in (f"{norm}.weight", f"{norm}.bias", f"{linear}.weight"))
    m_w, m_b, m_matrix = (
        exp_avg[name].double() for name in (f"{norm}.weight", f"{norm}.bias", f"{linear}.weight")
    )
    yield (matrix * m_matrix).sum(0), w * m_w + b * m_b
    if f"{linear}.bias" in exp_avg:
        yield matrix.T @ exp_avg[f"{linear}.bias"].double(), m_b


def _cosine(one: Tensor, other: Tensor) -> float:
    lengths = float(one.norm() * other.norm())
    return float(one @ other) / lengths if lengths else 0.0


def ambiguous_parameters(listed: Sequence[TensorInfo], fits: Mapping[str, bool]) -> list[TensorInfo]:
    """Return the parameters of a group that neither shapes nor moments determine.

    A parameter is determined if no other one of the group has its shape, or if its moments pass the test.
    The other parameters of its block or layer are then determined too, and the last remaining one of a shape.
    """
    shapes = Counter(tensor.shape for tensor in listed)
    certain = {t.name for t in listed if fits.get(t.name, shapes[t.shape] == 1)}
    doubtful = {_unit(t.name) for t in listed if contradicted([t.name], fits)}
    units = {_unit(name) for name in certain} - doubtful
    left = [t for t in listed if shapes[t.shape] > 1 and t.name not in certain and _unit(t.name) not in units]
    remaining = Counter(tensor.shape for tensor in left)
    return [t for t in left if remaining[t.shape] > 1 or _unit(t.name) in doubtful]


def contradicted(names: Iterable[str], fits: Mapping[str, bool]) -> bool:
    """Return True if some of the moments contradict the names that they are assigned to."""
    return not all(fits.get(name, True) for name in names)


def _unit(name: str) -> str:
    """Return the block or layer of a parameter: `blocks.3`, `head.0`, `norm`."""
    match = re.match(r"[^.]+(\.\d+)?", name)
    assert match is not None, name
    return match[0]
