"""Comparison of the variants before training: initial weights and order of the samples."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aqtopo.config import RunConfig
from aqtopo.data.samples import StepPlan, epoch_order, sample_table
from aqtopo.data.store import Store
from aqtopo.model import AirQualityViT, Terrain, build_model

Digests = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and SHA-256 of every weight, by name."""


@dataclass(frozen=True)
class StartComparison:
    """Comparison of the variants before the first step.

    Attributes:
        equal: number of tensors with equal values in all variants.
        only_in_some: tensors that are missing, or have another shape, in some variant.
        different: tensors of equal shape and different values: the comparison is confounded.
        steps: updates of each variant.
        same_order: True if all variants have the same samples in the same order.
        perfect_weather: True if a variant is given the weather to come, from the store.
    """

    equal: int
    only_in_some: tuple[str, ...]
    different: tuple[str, ...]
    steps: tuple[int, ...]
    same_order: bool
    perfect_weather: bool = False

    def __str__(self) -> str:
        only = f"; only in some: {', '.join(self.only_in_some)}" if self.only_in_some else ""
        other = f"; DIFFERENT: {', '.join(self.different)}" if self.different else ""
        order = "same samples in the same order" if self.same_order else "DIFFERENT samples or order"
        steps = "/".join(map(str, dict.fromkeys(self.steps)))
        weather = "; perfect weather" if self.perfect_weather else ""
        return f"initial weights: {self.equal} tensors equal{only}{other}; {order}, {steps} steps{weather}"


def compare_starts(configs: Sequence[RunConfig], store: Store) -> StartComparison:
    """Compare the variants of one seed."""
    terrain = Terrain(store.static["elevation"], store.lat, store.lon)
    all_digests = [weight_digests(build_model(config, terrain)) for config in configs]
    names = dict.fromkeys(name for digests in all_digests for name in digests)
    # A missing tensor has the shape None.
    shapes = {name: {digests.get(name, (None,))[0] for digests in all_digests} for name in names}
    shared = [name for name in names if len(shapes[name]) == 1]
    different = tuple(name for name in shared if len({digests[name][1] for digests in all_digests}) > 1)
    orders = [_order(config, store) for config in configs]
    return StartComparison(
        equal=len(shared) - len(different),
        only_in_some=tuple(name for name in names if name not in shared),
        different=different,
        steps=tuple(steps for steps, _ in orders),
        same_order=len({digest for _, digest in orders}) == 1,
        perfect_weather=any(config.data.weather_at_horizons for config in configs),
    )


def weight_digests(model: AirQualityViT) -> Digests:
    """Return the digests of an untrained model.

    Position embeddings belong to scan positions. A wind order permutes them on a calm day, so they are
    compared in raster order.
    """
    digests = {}
    for name, weight in model.state_dict().items():
        values = weight.detach().float()
        if name == "pos_embed" and model.wind_order is not None:
            raster = torch.empty_like(values)
            raster[:, model.wind_order.calm_order()] = values
            values = raster
        content = values.contiguous().numpy().tobytes()
        digests[name] = tuple(weight.shape), hashlib.sha256(content).hexdigest()
    return digests


def _order(config: RunConfig, store: Store) -> tuple[int, str]:
    """Return the number of steps of the run and a digest of its sample order."""
    table = sample_table(config, store.times, "train")
    digest = hashlib.sha256()
    for epoch in range(config.training.epochs):
        times, horizons = table.lookup(epoch_order(config.training.seed, epoch, len(table)))
        digest.update(times.tobytes() + horizons.tobytes())
    steps = config.training.epochs * StepPlan.from_config(config, len(table)).steps_per_epoch
    return steps, digest.hexdigest()
