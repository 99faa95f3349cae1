"""Dropout and drop path whose masks belong to the sample, not to the process that happens to hold it.

A mask is a pure function of the run's seed, the epoch, the sample's place in the epoch's order and the
layer. So a run sees the same masks at any world size, after a resume, and when checkpointing computes a
block twice.

Dropout masks are drawn by PyTorch on the tensor's own device, whose generators differ between kinds of
device; drop-path decisions are the same everywhere.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Seeds = Sequence[int] | None
"""One seed a sample of the batch; None where nothing is dropped."""


def _hash63(*parts: int | str) -> int:
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def sample_seed(run_seed: int, epoch: int, place: int) -> int:
    """The 63-bit seed of one sample's masks.

    Args:
        run_seed: the run's `training.seed`.
        epoch: epoch, from 0.
        place: the sample's place in that epoch's order; -1 for a surplus sample, whose loss does not count.
    """
    return _hash63(run_seed, epoch, place)


class _PerSample(nn.Module):
    """Drops with probability `p` in training, by masks named after the sample's seed and `layer`."""

    def __init__(self, p: float, layer: str) -> None:
        super().__init__()
        self.p, self.layer = p, layer

    def extra_repr(self) -> str:
        return f"p={self.p:g}, layer={self.layer!r}"

    def _layer_seeds(self, x: Tensor, seeds: Seeds) -> list[int] | None:
        """A seed a sample for this layer, or None where nothing is dropped."""
        if not self.training or self.p == 0.0:
            return None
        if seeds is None or len(seeds) != x.shape[0]:
            given = "none" if seeds is None else str(len(seeds))
            raise ValueError(
                f"Dropout in training needs one seed a sample: {given} given for a batch of {x.shape[0]}; "
                "pass `seeds` (see sample_seed), or call eval()."
            )
        return [_hash63(seed, self.layer) for seed in seeds]


_LEVELS = 2**16
"""Probabilities are multiples of one in 65536: 16 random bits an activation, a fifth of a Bernoulli draw."""


class SampleDropout(_PerSample):
    """Zeroes single activations with probability p, and scales the others so that the mean stays.

    p is rounded to 16 bits, and the scale is that of the rounded one.
    """

    def forward(self, x: Tensor, seeds: Seeds) -> Tensor:
        """Drops from x (B, ...) by the masks of its B samples.

        Raises:
            ValueError: in training with p > 0, `seeds` is None or has another length than the batch.
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
    """Uniform 16-bit integers in the shape of a tensor, four cut out of each of the generator's words."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=torch.Generator(like.device).manual_seed(seed))
    return words.view(torch.int16)[: like.numel()].view_as(like)


class SampleDropPath(_PerSample):
    """Drops a sample's whole residual branch with probability p, and scales the others by 1 / (1 - p)."""

    def forward(self, x: Tensor, seeds: Seeds) -> Tensor:
        """Drops rows of x (B, ...).

        Raises:
            ValueError: in training with p > 0, `seeds` is None or has another length than the batch.
        """
        layer_seeds = self._layer_seeds(x, seeds)
        if layer_seeds is None:
            return x
        factor = x.new_empty(len(layer_seeds), *[1] * (x.ndim - 1))
        for row, seed in zip(factor, layer_seeds, strict=True):
            # Filled row by row: a tensor made of a list would wait for the device to copy it.
            row.fill_(1.0 / (1.0 - self.p) if seed >= self.p * 2.0**63 else 0.0)
        return x * factor
