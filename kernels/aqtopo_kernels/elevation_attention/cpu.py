"""Elevation attention on the CPU: PyTorch's flash kernels over tokens sorted by elevation.

Tokens are sorted in ascending order of elevation, and queries are processed in bands. The bias
-alpha max(0, z_j - z_i) of a band is zero for keys below the band. For keys above it, the bias is the sum of
-alpha (z_j - top), which is added to the key's column of scores, and alpha (z_i - top), a constant of the
query's row, which changes only the log-sum-exp. The bias is a matrix only for the band's own keys. A band
thus takes three flash attentions in O(N) memory, and the only matrix has the size of a band. The three are
exact parts of one softmax and are merged by their log-sum-exps. In the backward pass each gets the merged
output and log-sum-exp.

Alternatives: chunks of queries against all keys, as plain matrix products, take twice the time from 4096
tokens on (`benchmarks/cpu_candidates.py`). Two causal attentions, one for each half of the sorted score
matrix, need fewer calls. But 6% of their work is on masked scores (N 8192), and their float32 log-sum-exps
contain alpha z of the whole terrain: the error of alpha's gradient was 7 times that of the dense formula
(alpha 5, heights to 9 km).

16-bit inputs are computed in float32, float64 in float64.

Shapes: B batch, H heads, G heads of a group, N tokens, R rows of a band, C keys of a band part, D head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from aqtopo_kernels.elevation_attention.layout import empty_like_tokens
from aqtopo_kernels.elevation_attention.reference import METRES_PER_UNIT
from aqtopo_kernels.elevation_attention.rises import (
    BIN,
    factors_above,
    factors_across_bins,
    rise,
    sum_within_bins,
)
from aqtopo_kernels.elevation_attention.sorting import SortedTerrain
from aqtopo_kernels.elevation_attention.workspace import workspace

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_BAND = 1024
"""Queries per band. PyTorch uses its large blocks, 256 x 512, from 768 queries on."""

_SPARE = 2 * _BAND // BIN
"""Columns after the D columns of sorted copies in the backward pass, for the factors of rises."""

_COLUMNS = 8
"""Widths are multiples of this: 104 columns take as long as 98, and 110 take 25% longer than 112."""

_GROUP_ELEMENTS = 1 << 21
"""Elements of q processed at a time, unless the threads need more: limits the memory of sorted copies."""


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor | None,
    alpha: Tensor | None,
    order: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute attention (B, H, N, D) in q's dtype and its log-sum-exp (B, H, N), rows in the given order.

    Without elevation the terrain is flat. The output's memory layout is (B, N, H, D), so merging its heads is
    free.
    """
    elevation, alpha = _or_flat(q, elevation, alpha)
    terrain = SortedTerrain.of(elevation, order, torch.promote_types(q.dtype, torch.float32))
    out_BHND, lse_BHN1 = empty_like_tokens(q), q.new_empty((*q.shape[:3], 1), dtype=terrain.compute)
    for samples, heads in _groups(q):
        group = terrain.of_samples(samples)
        q_BGND, k_BGND, v_BGND = (
            group.sources(name, x[samples, heads]) for name, x in {"q": q, "k": k, "v": v}.items()
        )
        q_BGND.mul_(scale)
        out_BGND = workspace.empty("out", q_BGND.shape, terrain.compute)
        lse_BGN1 = torch.empty_like(q_BGND[..., :1])
        alpha_G11 = _of_heads(alpha, heads, terrain.compute)
        for band in _bands(group):
            rows = band[0].rows
            out_BGND[:, :, rows], lse_BGN1[:, :, rows] = _merged(
                [part.attend(q_BGND, k_BGND, v_BGND, alpha_G11) for part in band]
            )
        group.write_results(out_BHND[samples, heads], out_BGND)
        group.write_results(lse_BHN1[samples, heads], lse_BGN1)
    return out_BHND, lse_BHN1.squeeze(-1)


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    elevation: Tensor | None,
    alpha: Tensor | None,
    order: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k, v (in their dtype) and alpha from dout (B, H, N, D)."""
    elevation, alpha = _or_flat(q, elevation, alpha)
    terrain = SortedTerrain.of(elevation, order, torch.promote_types(q.dtype, torch.float32))
    dq, dk, dv = gradients = tuple(empty_like_tokens(q) for _ in range(3))
    dalpha_H = torch.zeros(q.shape[1], dtype=torch.float64)
    spare = _round_up(q.shape[-1] + _SPARE) - q.shape[-1]
    for samples, heads in _groups(q):
        group = terrain.of_samples(samples)
        sorted_copies = [
            *(group.sources(n, x[samples, heads], spare) for n, x in {"q": q, "k": k, "v": v}.items()),
            *(group.results(n, x[samples, heads], spare) for n, x in {"out": out, "dout": dout}.items()),
            group.results("lse", lse[samples, heads].unsqueeze(-1)).squeeze(-1),
        ]
        saved = _Saved(*sorted_copies)
        saved.q.mul_(scale)
        shape = (*saved.lse.shape, q.shape[-1])
        sums = tuple(workspace.empty(name, shape, terrain.compute).zero_() for name in ("dq", "dk", "dv"))
        alpha_G11 = _of_heads(alpha, heads, terrain.compute)
        for band in _bands(group):
            for part in band:
                dalpha_H[heads] -= part.add_gradients(sums, saved, alpha_G11)
        sums[0].mul_(scale)
        for gradient, total in zip(gradients, sums, strict=True):
            group.write_sources(gradient[samples, heads], total)
    dalpha = dalpha_H if len(alpha) > 1 else dalpha_H.sum(0, keepdim=True)
    return dq, dk, dv, (dalpha / METRES_PER_UNIT).to(alpha.dtype)


@dataclass(frozen=True)
class _Saved:
    """Sorted inputs of the backward pass of a head group: (B, G, N, D + spare), lse (B, G, N)."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    dout: Tensor
    lse: Tensor


@dataclass(frozen=True)
class _BandPart:
    """Attention of a band's queries to the keys below it, and base class of the band's other parts.

    Attributes:
        rows: sorted positions of the queries.
        columns: sorted positions of the keys.
        query_height: (B, R) [m].
        key_height: (B, C) [m].
    """

    rows: slice
    columns: slice
    query_height: Tensor
    key_height: Tensor

    def mask(self, alpha_G11: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the bias of the scores, (B, G, R or 1, C); alpha is (G, 1, 1) or (1, 1, 1) [1/m]."""
        return None

    def row_bias(self, alpha_G11: Tensor) -> Tensor:
        """Return the constant bias of each row of scores, (B, G, R)."""
        return torch.zeros((), dtype=alpha_G11.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the left (B, R, X) and right (B, C, X) factors of the rises."""
        return self.query_height[..., None][..., :0], self.key_height[..., None][..., :0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, alpha_G11: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part's attention (B, G, R, D) and its log-sum-exp in float64, (B, G, R)."""
        keys = k[:, :, self.columns], v[:, :, self.columns]
        out, lse = _flash(q[:, :, self.rows], *keys, attn_mask=self.mask(alpha_G11), scale=1.0)
        return out, lse.double() + self.row_bias(alpha_G11)

    def add_gradients(self, sums: tuple[Tensor, ...], saved: _Saved, alpha_G11: Tensor) -> Tensor:
        """Add to the gradients of q, k and v; return the sum of score gradient x rise, (G,)."""
        left_BRX, right_BCX = self.factors()
        D = sums[0].shape[-1]
        used = D + right_BCX.shape[-1]
        wide = slice(0, _round_up(used) if used > D else D)
        saved.k[:, :, self.columns, D:used] = right_BCX.unsqueeze(1)
        saved.k[:, :, self.columns, used:] = 0.0
        dq, dk, dv = _flash_backward(
            saved.dout[:, :, self.rows, wide],
            saved.q[:, :, self.rows, wide],
            saved.k[:, :, self.columns, wide],
            saved.v[:, :, self.columns, wide],
            saved.out[:, :, self.rows, wide],
            saved.lse[:, :, self.rows] - self.row_bias(alpha_G11),
            0.0,
            False,
            attn_mask=self.mask(alpha_G11),
            scale=1.0,
        )
        sums[0][:, :, self.rows] += dq[..., :D]
        sums[1][:, :, self.columns] += dk[..., :D]
        sums[2][:, :, self.columns] += dv[..., :D]
        total_G: Tensor = (dq[..., D:used] * left_BRX.unsqueeze(1)).sum((0, 2, 3), dtype=torch.float64)
        return total_G


class _Above(_BandPart):
    """Attention of a band's queries to the keys above it."""

    def mask(self, alpha_G11: Tensor) -> Tensor:
        return -alpha_G11 * (self.key_height - self.query_height[:, -1:])[:, None, None]

    def row_bias(self, alpha_G11: Tensor) -> Tensor:
        return alpha_G11.squeeze(-1) * (self.query_height - self.query_height[:, -1:])[:, None]

    def factors(self) -> tuple[Tensor, Tensor]:
        return factors_above(self.query_height, self.key_height)


class _Within(_BandPart):
    """Attention of a band's queries to the band's own keys."""

    def mask(self, alpha_G11: Tensor) -> Tensor:
        return -alpha_G11 * self.rises

    @cached_property
    def rises(self) -> Tensor:
        """Rises within the band, cached for the heads of a group."""
        return rise(self.key_height, self.key_height).unsqueeze(1)

    def factors(self) -> tuple[Tensor, Tensor]:
        return factors_across_bins(self.key_height)

    def add_gradients(self, sums: tuple[Tensor, ...], saved: _Saved, alpha_G11: Tensor) -> Tensor:
        D = sums[0].shape[-1]
        q, k, v, out, dout = (
            x[:, :, self.rows, :D] for x in (saved.q, saved.k, saved.v, saved.out, saved.dout)
        )
        lse = saved.lse[:, :, self.rows]
        close_G = sum_within_bins(q, k, v, out, dout, lse, self.key_height, alpha_G11)
        return close_G + super().add_gradients(sums, saved, alpha_G11)


def _bands(terrain: SortedTerrain) -> list[list[_BandPart]]:
    """Return the parts of each band, which together cover each key once."""
    bands, N = [], terrain.height.shape[1]
    for first in range(0, N, _BAND):
        end = min(first + _BAND, N)
        rows = slice(first, end)
        key_ranges = {_BandPart: slice(0, first), _Within: rows, _Above: slice(end, N)}
        bands.append(
            [
                part_class(rows, columns, terrain.height[:, rows], terrain.height[:, columns])
                for part_class, columns in key_ranges.items()
                if columns.start < columns.stop
            ]
        )
    return bands


def _merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attentions over disjoint keys: the attention (B, G, R, D) and log-sum-exp (B, G, R, 1)."""
    lse_BGRP = torch.stack([lse for _, lse in parts], -1)
    merged_BGR1 = lse_BGRP.logsumexp(-1, keepdim=True)
    share_BGRP = (lse_BGRP - merged_BGR1).exp_().to(parts[0][0].dtype)
    out_BGRD = parts[0][0].mul_(share_BGRP[..., :1])
    for index, (out, _) in enumerate(parts[1:], start=1):
        out_BGRD.addcmul_(out, share_BGRP[..., index : index + 1])
    return out_BGRD, merged_BGR1


def _or_flat(q: Tensor, elevation: Tensor | None, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return elevation and alpha, or flat terrain if there is none."""
    if elevation is None or alpha is None:
        return q.new_zeros((q.shape[0], q.shape[2]), dtype=torch.float32), q.new_zeros(1, dtype=torch.float32)
    return elevation, alpha


def _round_up(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS


def _of_heads(alpha: Tensor, heads: slice, dtype: torch.dtype) -> Tensor:
    """Return alpha of these heads [1/m], (G, 1, 1), or (1, 1, 1) if all share one."""
    return (alpha[heads] if len(alpha) > 1 else alpha)[:, None, None].to(dtype) / METRES_PER_UNIT


def _groups(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Split samples and heads into groups that limit the memory of sorted copies.

    A group has at least one head of a sample for each thread: PyTorch's backward pass runs B x H tasks.
    """
    B, H, N, D = q.shape
    threads, limit = torch.get_num_threads(), _GROUP_ELEMENTS // (N * D)
    for samples in _parts(B, max(threads, limit)):
        size = samples.stop - samples.start
        for heads in _parts(H, max(-(-threads // size), limit // size, 1)):
            yield samples, heads


def _parts(count: int, at_most: int) -> Iterator[slice]:
    """Split a range into parts of nearly equal size."""
    size = -(-count // -(-count // at_most))
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
