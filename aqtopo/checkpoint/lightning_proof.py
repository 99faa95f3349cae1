"""Whether Adam's moments bear out by themselves which parameter they belong to.

Shapes cannot tell one block's tensors from another's, but gradients can. Where a LayerNorm with weight w and
bias b feeds a Linear with weight W and bias c, the loss stays the same if w_j and b_j are multiplied by a
number and column j of W is divided by it. So at every step

    sum_i W_ij dL/dW_ij = w_j dL/dw_j + b_j dL/db_j    and    dL/db = W^T dL/dc,

whatever the data, the dropout behind and the clipping. `exp_avg` is a mean of gradients over some ten steps,
in which weights hardly move: with the right moments both sides agree (cosines of 0.9999 and more in a run
that Lightning saved, 16 wide), with those of another block they have nothing to do with each other.

What no such pair contains is taken to stand where its module's other parameters do: an order that keeps
every norm and every Linear behind one in its place, and every shape, but swaps other tensors within a
block, would not be noticed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from aqtopo.checkpoint.manifest import TensorInfo

FED_BY = {"norm1": "attn.qkv", "norm2": "mlp.fc1", "norm": "head.0"}
"""The Linear behind each LayerNorm, in the same module."""

AGREEMENT = 0.9
"""Cosine; unrelated vectors of 16 elements come so close once in a million."""

Tensors = Mapping[str, Tensor]


def borne_out(weights: Tensors, exp_avg: Tensors) -> dict[str, bool]:
    """For each parameter in a pair of norm and Linear, whether the pair's gradients fit together.

    Args:
        weights: by name.
        exp_avg: first moments by the name that they are believed to belong to.
    """
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
    """Both sides of each equation."""
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


def undecided(listed: Sequence[TensorInfo], fits: Mapping[str, bool]) -> list[TensorInfo]:
    """Parameters of a group that shapes and moments leave to chance.

    Certain are those whose shape no other of the group has and those that the moments bear out; with them
    the other parameters of the same block or layer, and what is the last of its shape.

    Args:
        listed: the group's parameters.
        fits: from `borne_out`.
    """
    shapes = Counter(tensor.shape for tensor in listed)
    certain = {t.name for t in listed if fits.get(t.name, shapes[t.shape] == 1)}
    doubtful = {_unit(t.name) for t in listed if refuted([t.name], fits)}
    units = {_unit(name) for name in certain} - doubtful
    left = [t for t in listed if shapes[t.shape] > 1 and t.name not in certain and _unit(t.name) not in units]
    remaining = Counter(tensor.shape for tensor in left)
    return [t for t in left if remaining[t.shape] > 1 or _unit(t.name) in doubtful]


def refuted(names: Iterable[str], fits: Mapping[str, bool]) -> bool:
    """Whether some of the moments contradict the names that they are believed to belong to."""
    return not all(fits.get(name, True) for name in names)


def _unit(name: str) -> str:
    """The block or layer that a parameter belongs to: `blocks.3`, `head.0`, `norm`."""
    match = re.match(r"[^.]+(\.\d+)?", name)
    assert match is not None, name
    return match[0]
