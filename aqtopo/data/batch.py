"""Micro-batches: samples read from the store, filled, normalised and masked.

Shapes: B samples, V input variables, A fields at the valid times, K lead times, C targets, H x W grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from aqtopo.config import RunConfig
from aqtopo.data.check import check_store
from aqtopo.data.forcings import forcing
from aqtopo.data.read_check import HourCheck
from aqtopo.data.samples import PADDING
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.data.workers import ByteBuffer, shared_buffer

_TENSORS = ("inputs", "weather", "wind", "targets", "valid", "lead_hours")

Fields = NDArray[np.float32]
Missing = NDArray[np.bool_] | None
"""Mask (C, H, W) of the missing values of an hour; None if the hour is complete, the usual case."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Micro-batch.

    Attributes:
        inputs: (B, V, H, W) float32, finite, in the order of `data.inputs`; all but the forcings normalised.
        weather: (B, K, A, H, W) float32, finite, in the order of `data.at_horizons`; normalised but for the
            insolation.
        wind: (B, 2, H, W) float32, eastward and northward wind [m/s], never normalised; finite.
        targets: (B, K, C, H, W) float32, normalised; 0 for missing values.
        valid: (B, K, C, H, W) bool, True for the loss and the scores: the static mask is 1, the target is
            finite, and the sample is not padding.
        lead_hours: (B, K) float32 [h].
        places: each sample's place in the epoch's order, or `PADDING`.
        times: (B,) datetime64[h], UTC; NaT for padding.
        filled: number of missing input values, replaced by their channel's mean.
    """

    inputs: Tensor
    weather: Tensor
    wind: Tensor
    targets: Tensor
    valid: Tensor
    lead_hours: Tensor
    places: tuple[int, ...]
    times: Hours
    filled: int

    @property
    def samples(self) -> int:
        """Number of samples without padding."""
        return sum(place != PADDING for place in self.places)

    @property
    def model_inputs(self) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        """Arguments of the model's forward pass in evaluation mode, without seeds."""
        return self.inputs, self.wind, self.lead_hours, None, self.weather

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device; a copy from pinned memory overlaps with kernels."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, which a GPU copies asynchronously."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    def record_stream(self, stream: torch.Stream) -> None:
        """Delay the reuse of the batch's GPU memory, once freed, until the stream's queued work is done."""
        for name in _TENSORS:
            getattr(self, name).record_stream(stream)

    def clone(self) -> "Batch":
        """Return a copy in this process's own memory."""
        return replace(self, **{name: getattr(self, name).clone() for name in _TENSORS})


class BatchReader:
    """Reader of the samples of one run; it has no open file, so it can be sent to a loader process.

    Args:
        store: the data.
        config: the run.
        watched: the caller has a deadline for each batch; if False, each hour has one.

    Raises:
        ValueError: the store does not fit the run.
    """

    def __init__(self, store: Store, config: RunConfig, *, watched: bool = False) -> None:
        self._store, self._watched = store, watched
        self._normalization = check_store(store, config)
        self._mask = store.static["mask"] > 0
        variables = config.data.variables

        def channels(names: Sequence[str], first: int = 0) -> list[_Channel]:
            mean, std = self._normalization.mean, self._normalization.std
            return [
                _Channel(place, store.channels.index(name), np.float32(mean[name]), np.float32(std[name]))
                for place, name in enumerate(names, first)
                if name in store.channels
            ]

        self._inputs = config.data.inputs
        self._lat, self._lon = store.lat, store.lon
        self._forcings = list(enumerate(config.data.forcings, len(variables)))
        # The channels that are read from each source: the initial time, then the hours of the history.
        self._sources, first = [channels(variables)], len(variables) + len(self._forcings)
        self._hours_before = np.array([0, *config.data.history_hours], dtype="timedelta64[h]")
        for hours in config.data.history_hours:
            names = [name for name, before in config.data.history if before == hours]
            self._sources.append(channels(names, first))
            first += len(names)
        self._wind, self._target = channels(("u", "v")), channels(config.data.targets)
        self._at_horizons, self._weather = config.data.at_horizons, channels(config.data.weather_at_horizons)
        self._check = HourCheck(store)
        self._read = [self._flags([*source, *self._wind]) for source in self._sources]
        self._read_at_ends = self._flags([*self._target, *self._weather])
        # Static channels are the same in every sample, so they are normalised once.
        self._static = [
            (place, self._normalization.normalize(store.static[name][None], [name])[0])
            for place, name in enumerate(variables)
            if name not in store.channels
        ]

    @property
    def names(self) -> list[str]:
        """Names of all hourly channels that the reader reads."""
        read = np.any([*self._read, self._read_at_ends], axis=0)
        return [name for name, each in zip(self._store.channels, read, strict=True) if each]

    def _flags(self, channels: "Sequence[_Channel]") -> NDArray[np.bool_]:
        """Return True (C,) for the store's channels that are among these."""
        return np.isin(np.arange(len(self._store.channels)), [channel.stored for channel in channels])

    def shapes(self, samples: int, leads: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors of a batch of B samples with K lead times."""
        targets = (samples, leads, len(self._target), *self._mask.shape)
        return {  # bool last, so that the floats before it are aligned
            "inputs": (samples, len(self._inputs), *self._mask.shape),
            "weather": (samples, leads, len(self._at_horizons), *self._mask.shape),
            "wind": (samples, 2, *self._mask.shape),
            "targets": targets,
            "lead_hours": (samples, leads),
            "valid": targets,
        }

    def size(self, samples: int, leads: int) -> int:
        """Return the bytes of a batch's tensors."""
        return sum(_bytes(name, shape) for name, shape in self.shapes(samples, leads).items())

    def tensors(self, samples: int, leads: int, buffer: ByteBuffer | None) -> dict[str, Tensor]:
        """Return the tensors of a batch, contiguous in a buffer; None allocates an uninitialised one."""
        if buffer is not None:
            memory = torch.from_numpy(buffer)
        elif get_worker_info() is None:
            memory = torch.empty(self.size(samples, leads), dtype=torch.uint8)
        else:  # shared from the start, so that the trainer receives it without a copy
            memory = shared_buffer(self.size(samples, leads))
        tensors: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes(samples, leads).items():
            end = start + _bytes(name, shape)
            tensors[name] = memory[start:end].view(_dtype(name)).view(shape)
            start = end
        return tensors

    def batch(
        self,
        times: Hours,
        lead_hours: NDArray[np.int64],
        places: NDArray[np.int64],
        into: ByteBuffer | None = None,
    ) -> Batch:
        """Read one micro-batch; read each hour once.

        Args:
            times: (B,) initial times; ignored for padding.
            lead_hours: (B, K) [h]. A target hour that is not stored is invalid in all cells; with weather to
                come, it is refused.
            places: (B,) places in the epoch's order, or `PADDING`.
            into: buffer of at least `size` bytes for the tensors; None allocates one.

        Raises:
            ValueError: an initial time, its history or its weather is not in the store, a shard cannot be
                read, or a value is a fill value or impossible.
            TimeoutError: the file system does not answer; only if not `watched`.
        """
        real = np.flatnonzero(places != PADDING)
        init_times = times[real].astype("datetime64[h]")
        leads = lead_hours[real].astype("timedelta64[h]")
        ends = init_times[:, None] + leads
        stored = self._store.holds(ends)
        if self._weather:
            self._store.locate(ends)
        sources = init_times - self._hours_before[:, None]
        hours, where = np.unique(np.concatenate([sources.ravel(), ends[stored]]), return_inverse=True)
        indices = self._store.locate(hours)
        batch = self.tensors(len(places), lead_hours.shape[1], into)
        padding = places == PADDING
        for name in ("inputs", "weather", "wind", "targets", "valid"):
            batch[name].numpy()[padding] = 0
        rows, lead_places = np.nonzero(~stored)
        for name in ("targets", "valid"):
            batch[name].numpy()[real[rows], lead_places] = 0
        # Number of the hour of each source of each sample's inputs, and of each stored lead time.
        source_hours, end_hours = where[: sources.size].reshape(sources.shape), where[sources.size :]
        rows, lead_places = np.nonzero(stored)
        filled = 0
        for number, index in enumerate(indices):
            takes = end_hours == number
            numbers, samples = np.nonzero(source_hours == number)
            filled += self._put_hour(
                int(index), batch, (numbers, real[samples]), (real[rows[takes]], lead_places[takes])
            )
        self._put_forcings(batch, real, init_times, ends)
        batch["lead_hours"].numpy()[:] = np.where(padding[:, None], 0, lead_hours)
        return Batch(
            **batch,
            places=tuple(places.tolist()),
            times=np.where(padding, np.datetime64("NaT", "h"), times.astype("datetime64[h]")),
            filled=filled,
        )

    def _put_forcings(
        self, batch: dict[str, Tensor], samples: NDArray[np.int64], init_times: Hours, ends: Hours
    ) -> None:
        """Write the forcings of the initial times (n,) and, at the valid times (n, K), the insolation."""
        into = torch.from_numpy(samples)
        for place, name in self._forcings:
            values = forcing(name, init_times, self._lat, self._lon)
            batch["inputs"][into, place] = torch.from_numpy(values)
        for place in range(len(self._weather), len(self._at_horizons)):
            values = forcing(self._at_horizons[place], ends.ravel(), self._lat, self._lon)
            values = values.reshape(*ends.shape, *values.shape[1:])
            batch["weather"][into, :, place] = torch.from_numpy(values)

    def _put_hour(
        self,
        index: int,
        batch: dict[str, Tensor],
        inputs: tuple[NDArray[np.int64], NDArray[np.int64]],
        ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> int:
        """Read an hour into `inputs` (source numbers, samples) and targets `ends` (samples, lead indices).

        Only one hour is in memory at a time, so the next one reuses its pages without page faults.

        Returns:
            The number of missing input values.
        """
        read = self._store.read_without_deadline if self._watched else self._store.read_span
        fields = read(index, index + 1)[0]
        used = [self._read[source] for source in np.unique(inputs[0])]
        used += [self._read_at_ends] if ends[0].size else []
        self._check(index, fields, np.any(used, axis=0))
        finite = np.isfinite(fields)
        missing = None if finite.all() else ~finite
        filled = 0
        for source, sample in zip(*(each.tolist() for each in inputs), strict=True):
            channels, into = self._sources[source], batch["inputs"][sample].numpy()
            for channel in channels:
                channel.normalize(fields, missing, into[channel.place])
            if source == 0:
                self._put_static_and_wind(fields, missing, into, batch["wind"][sample].numpy())
            if missing is not None:
                filled += int(np.count_nonzero(missing[[channel.stored for channel in channels]]))
        for place in zip(*ends, strict=True):
            self._put_targets(fields, missing, batch["targets"][place].numpy(), batch["valid"][place].numpy())
            for channel in self._weather:
                channel.normalize(fields, missing, batch["weather"][place].numpy()[channel.place])
            if missing is not None:
                filled += int(np.count_nonzero(missing[[channel.stored for channel in self._weather]]))
        return filled

    def _put_static_and_wind(self, fields: Fields, missing: Missing, inputs: Fields, wind: Fields) -> None:
        """Write the static inputs (V, H, W) and the wind (2, H, W) [m/s]; the mean for missing values."""
        for place, static in self._static:
            inputs[place] = static
        for channel in self._wind:
            wind[channel.place] = fields[channel.stored]
            if missing is not None:
                wind[channel.place][missing[channel.stored]] = channel.mean

    def _put_targets(
        self, fields: Fields, missing: Missing, targets: Fields, valid: NDArray[np.bool_]
    ) -> None:
        """Write normalised targets (C, H, W), 0 for missing values, and their validity."""
        valid[:] = self._mask
        for channel in self._target:
            channel.normalize(fields, missing, targets[channel.place])
            if missing is not None:
                valid[channel.place] &= ~missing[channel.stored]


def _dtype(name: str) -> torch.dtype:
    return torch.bool if name == "valid" else torch.float32


def _bytes(name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _dtype(name).itemsize


class _Channel(NamedTuple):
    """Variable: its index in the tensor and in the store, and its normalisation."""

    place: int
    stored: int
    mean: np.float32
    std: np.float32

    def normalize(self, fields: Fields, missing: Missing, into: Fields) -> None:
        """Write the normalised channel, 0 (the mean) for missing values, without a temporary array."""
        np.subtract(fields[self.stored], self.mean, out=into)
        np.divide(into, self.std, out=into)
        if missing is not None:
            into[missing[self.stored]] = 0.0
