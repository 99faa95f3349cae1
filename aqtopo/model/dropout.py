"""Dropout and drop path with one reproducible mask per sample.

A mask is a pure function of the run's seed, the epoch, the sample's position in the epoch's order and the
layer. It is therefore the same at any world size, after a resume, and when activation checkpointing
recomputes a block.

PyTorch draws dropout masks on the tensor's device, and its generators differ between device types. Drop-path
decisions are the same on all devices.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Seeds = Sequence[int] | None
"""One seed per sample of the batch; None if nothing is dropped."""


def _hash63(*parts: int | str) -> int:
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def sample_seed(run_seed: int, epoch: int, position: int) -> int:
    """Return the 63-bit seed of one sample's masks.

    Args:
        run_seed: `training.seed`.
        epoch: from 0.
        position: of the sample in the epoch's order; -1 for padding, which has weight 0 in the loss.
    """
    return _hash63(run_seed, epoch, position)


class _PerSample(nn.Module):
    """Base class of modules that drop with probability `p` in training; seed and `layer` fix the masks."""

    def __init__(self, p: float, layer: str) -> None:
        super().__init__()
        self.p, self.layer = p, layer

    def extra_repr(self) -> str:
        return f"p={self.p:g}, layer={self.layer!r}"

    def _layer_seeds(self, x: Tensor, seeds: Seeds) -> list[int] | None:
        """Return one seed per sample for this layer, or None if nothing is dropped."""
        if not self.training or self.p == 0.0:
            return None
        if seeds is None or len(seeds) != x.shape[0]:
            given = "none" if seeds is None else str(len(seeds))
            raise ValueError(
                f"Dropout in training needs one seed per sample, but got {given} for a batch of "
                f"{x.shape[0]}; pass `seeds` (see sample_seed) or call eval()."
            )
        return [_hash63(seed, self.layer) for seed in seeds]


_LEVELS = 2**16
"""Number of probability levels. Drawing 16 random bits takes a fifth of the time of a Bernoulli draw."""


class SampleDropout(_PerSample):
    """Dropout: zeroes activations with probability p and scales the others to keep the mean.

    p is rounded to 16 bits, and the scale follows from the rounded p.
    """

    def forward(self, x: Tensor, seeds: Seeds) -> Tensor:
        """Apply dropout to x (B, ...) with one mask per sample.

        Raises:
            ValueError: in training with p > 0, `seeds` is None or its length differs from B.
        """
        layer_seeds = self._layer_seeds(x, seeds)
        if layer_seeds is None:
            return x
        levels = max(1, round((1.0 - self.p) * _LEVELS))
        kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        for row, seed in zip(kept, layer_seeds, strict=True):
            torch.lt(_random_levels(row, seed), levels - _LEVELS // 2, out=row)
        return torch.where(kept, x, 0.0).mul_(_LEVELS / levels)


def _random_levels(like: Tensor, seed: int) -> Tensor:
    """Return uniform 16-bit integers in the shape of a tensor, four from each 64-bit random word."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=torch.Generator(like.device).manual_seed(seed))
    return words.view(torch.int16)[: like.numel()].view_as(like)


class SampleDropPath(_PerSample):
    """Drop path: zeroes residual branches of samples with probability p, scales the others by 1 / (1 - p)."""

    def forward(self, x: Tensor, seeds: Seeds) -> Tensor:
        """Apply drop path to the samples of x (B, ...).

        Raises:
            ValueError: in training with p > 0, `seeds` is None or its length differs from B.
        """
        layer_seeds = self._layer_seeds(x, seeds)
        if layer_seeds is None:
            return x
        factor = x.new_empty(len(layer_seeds), *[1] * (x.ndim - 1))
        for row, seed in zip(factor, layer_seeds, strict=True):
            # Fill row by row: making a tensor from a list synchronises with the device.
            row.fill_(1.0 / (1.0 - self.p) if seed >= self.p * 2.0**63 else 0.0)
        return x * factor
