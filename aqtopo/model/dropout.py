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


class SampleDropout(_PerSample):
    """Zeroes single activations with probability p, and scales the others by 1 / (1 - p)."""

    def forward(self, x: Tensor, seeds: Seeds) -> Tensor:
        """Drops from x (B, ...) by the masks of its B samples.

        Raises:
            ValueError: in training with p > 0, `seeds` is None or has another length than the batch.
        """
        layer_seeds = self._layer_seeds(x, seeds)
        if layer_seeds is None:
            return x
        kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        for row, seed in zip(kept, layer_seeds, strict=True):
            row.bernoulli_(1.0 - self.p, generator=torch.Generator(x.device).manual_seed(seed))
        return x * kept * (1.0 / (1.0 - self.p))


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
