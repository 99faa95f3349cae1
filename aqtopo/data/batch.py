"""What the model is given: samples read from the store, filled, normalised and masked.

Letters of shapes: B samples, V input variables, K lead times, C targets, H x W grid.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqtopo.config import RunConfig
from aqtopo.data.check import check_store
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store

SURPLUS = -1
"""The place of a sample of weight 0, there only to make up the number: zeros, nothing valid, nothing read."""

_TENSORS = ("inputs", "wind", "targets", "valid", "lead_hours")

Fields = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch.

    Attributes:
        inputs: (B, V, H, W) float32, normalised, finite.
        wind: (B, 2, H, W) float32, eastward and northward wind in m/s, whatever the normalisation; finite.
        targets: (B, K, C, H, W) float32, normalised; 0 where there is no value.
        valid: (B, K, C, H, W) bool, where the loss and the scores count: the static mask is 1, the target has
            a finite value, and the sample is no surplus.
        lead_hours: (B, K) float32 [h].
        places: each sample's place in the epoch's order, `SURPLUS` for those of weight 0.
        times: (B,) datetime64[h], UTC; NaT for surplus.
        filled: input values that were missing and became their channel's mean.
    """

    inputs: Tensor
    wind: Tensor
    targets: Tensor
    valid: Tensor
    lead_hours: Tensor
    places: tuple[int, ...]
    times: Hours
    filled: int

    @property
    def samples(self) -> int:
        """Samples of weight 1."""
        return sum(place != SURPLUS for place in self.places)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy overlaps with what runs there."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; DataLoader calls this by its name."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    def clone(self) -> "Batch":
        """A copy in this process's own memory."""
        return replace(self, **{name: getattr(self, name).clone() for name in _TENSORS})


class BatchReader:
    """Reads samples of one run; holds no open file, so that it may be sent to a loader process.

    Raises:
        ValueError: the store does not fit the run.
    """

    def __init__(self, store: Store, config: RunConfig) -> None:
        self._store = store
        self._normalization = check_store(store, config)
        self._targets = config.data.targets
        self._target_channels = np.array([store.channels.index(name) for name in self._targets])
        self._wind_channels = np.array([store.channels.index(name) for name in ("u", "v")])
        self._mask = store.static["mask"] > 0
        variables = config.data.variables
        self._dynamic = tuple(name for name in variables if name in store.channels)
        self._dynamic_channels = np.array([store.channels.index(name) for name in self._dynamic], dtype=int)
        self._dynamic_places = np.array([variables.index(name) for name in self._dynamic], dtype=int)
        self._still = self._still_inputs(variables)

    def _still_inputs(self, variables: tuple[str, ...]) -> Fields:
        """The inputs (V, H, W) with the static fields in place, normalised once, and zeros elsewhere."""
        still = np.zeros((len(variables), *self._mask.shape), dtype=np.float32)
        for place, name in enumerate(variables):
            if name not in self._dynamic:
                still[place] = self._normalization.normalize(self._store.static[name][None], [name])[0]
        return still

    def batch(self, times: Hours, lead_hours: NDArray[np.int64], places: NDArray[np.int64]) -> Batch:
        """Read one micro-batch; each hour it needs is read once.

        Args:
            times: (B,) start times; ignored for surplus.
            lead_hours: (B, K) [h]. A target hour that is not stored is nowhere valid.
            places: (B,) places in the epoch's order, `SURPLUS` for samples of weight 0.

        Raises:
            ValueError: a start time is not in the store, or a shard cannot be read.
        """
        real = np.flatnonzero(places != SURPLUS)
        starts = times[real].astype("datetime64[h]")
        leads = lead_hours[real].astype("timedelta64[h]")
        ends = starts[:, None] + leads
        stored = np.isin(ends, self._store.times)
        hours, where = np.unique(np.concatenate([starts, ends[stored]]), return_inverse=True)
        fields = self._read(hours)

        size, count = self._mask.shape, (places.size, lead_hours.shape[1])
        inputs = np.zeros((places.size, *self._still.shape), dtype=np.float32)
        wind = np.zeros((places.size, 2, *size), dtype=np.float32)
        targets = np.zeros((*count, len(self._targets), *size), dtype=np.float32)
        valid = np.zeros(targets.shape, dtype=bool)
        filled = 0
        for sample, hour in zip(real, where, strict=False):
            inputs[sample], missing = self._inputs(fields[hour])
            wind[sample], _ = self._filled(fields[hour], self._wind_channels, ("u", "v"))
            filled += missing
        samples, lead_places = np.nonzero(stored)
        for sample, lead, hour in zip(real[samples], lead_places, where[real.size :], strict=True):
            targets[sample, lead], valid[sample, lead] = self._target(fields[hour])
        return Batch(
            inputs=torch.from_numpy(inputs),
            wind=torch.from_numpy(wind),
            targets=torch.from_numpy(targets),
            valid=torch.from_numpy(valid),
            lead_hours=torch.from_numpy(
                np.where(places[:, None] != SURPLUS, lead_hours, 0).astype(np.float32)
            ),
            places=tuple(places.tolist()),
            times=np.where(places != SURPLUS, times.astype("datetime64[h]"), np.datetime64("NaT", "h")),
            filled=filled,
        )

    def _read(self, hours: Hours) -> list[Fields]:
        return [self._store.read(int(index)) for index in self._store.locate(hours)]

    def _filled(
        self, fields: Fields, channels: NDArray[np.int64], names: tuple[str, ...]
    ) -> tuple[Fields, int]:
        """Channels of one hour with the channel's mean for missing values, in units, and how many were."""
        values = fields[channels]
        missing = ~np.isfinite(values)
        count = int(np.count_nonzero(missing))
        return (np.where(missing, self._normalization.means(names), values) if count else values), count

    def _inputs(self, fields: Fields) -> tuple[Fields, int]:
        values, missing = self._filled(fields, self._dynamic_channels, self._dynamic)
        inputs = self._still.copy()
        inputs[self._dynamic_places] = self._normalization.normalize(values, self._dynamic)
        return inputs, missing

    def _target(self, fields: Fields) -> tuple[Fields, NDArray[np.bool_]]:
        values = fields[self._target_channels]
        finite = np.isfinite(values)
        normalized = self._normalization.normalize(np.where(finite, values, 0.0), self._targets)
        return np.where(finite, normalized, np.float32(0)), finite & self._mask
