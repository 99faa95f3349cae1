"""Model inputs: samples read from the store, filled, normalised and masked.

Letters of shapes: B samples, V input variables, K lead times, C targets, H x W grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from aqtopo.config import RunConfig
from aqtopo.data.check import check_store
from aqtopo.data.forcings import forcing
from aqtopo.data.schema import Hours
from aqtopo.data.statistics import Normalization
from aqtopo.data.store import Store
from aqtopo.data.workers import Block

PADDING = -1
"""Place of a padding sample: weight 0, all zeros, nothing valid, nothing read."""

_TENSORS = ("inputs", "wind", "targets", "valid", "lead_hours")

Fields = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch.

    Attributes:
        inputs: (B, V, H, W) float32, finite, in the order of `data.inputs`; forcings as they are, the others
            normalised.
        wind: (B, 2, H, W) float32, eastward and northward wind in m/s, whatever the normalisation; finite.
        targets: (B, K, C, H, W) float32, normalised; 0 where there is no value.
        valid: (B, K, C, H, W) bool, where the loss and the scores count: the static mask is 1, the target has
            a finite value, and the sample is not padding.
        lead_hours: (B, K) float32 [h].
        places: each sample's place in the epoch's order, `PADDING` for those of weight 0.
        times: (B,) datetime64[h], UTC; NaT for padding.
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
    def labels(self) -> "Labels":
        """The batch without its tensors."""
        return Labels(self.places, self.times, self.filled)

    @property
    def samples(self) -> int:
        """Samples of weight 1."""
        return sum(place != PADDING for place in self.places)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy overlaps with what runs there."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies by itself."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    def clone(self) -> "Batch":
        """A copy in this process's own memory."""
        return replace(self, **{name: getattr(self, name).clone() for name in _TENSORS})


class Labels(NamedTuple):
    """Origin of a batch's samples; the fields are those of `Batch`."""

    places: tuple[int, ...]
    times: Hours
    filled: int


class BatchReader:
    """Reader of a run's samples; it holds no open file and can be sent to a loader process.

    Args:
        store: data store.
        config: the run.
        watched: the caller has a deadline for each batch; otherwise each hour has one.

    Raises:
        ValueError: the store does not fit the run.
    """

    def __init__(self, store: Store, config: RunConfig, *, watched: bool = False) -> None:
        self._store, self._watched = store, watched
        self._normalization = check_store(store, config)
        self._mask = store.static["mask"] > 0
        variables = config.data.variables
        self._inputs = len(config.data.inputs)
        self._lat, self._lon = store.lat, store.lon
        self._forcings = [(len(variables) + place, name) for place, name in enumerate(config.data.forcings)]
        self._dynamic = [
            _Channel.of(place, store.channels.index(name), name, self._normalization)
            for place, name in enumerate(variables)
            if name in store.channels
        ]
        first = len(variables) + len(config.data.forcings)
        self._history_hours = np.array(config.data.history_hours, dtype="timedelta64[h]")
        self._history = [
            [
                _Channel.of(first + place, store.channels.index(name), name, self._normalization)
                for place, (name, before) in enumerate(config.data.history)
                if before == hours
            ]
            for hours in config.data.history_hours
        ]
        self._wind = [
            _Channel.of(place, store.channels.index(name), name, self._normalization)
            for place, name in enumerate(("u", "v"))
        ]
        self._target = [
            _Channel.of(place, store.channels.index(name), name, self._normalization)
            for place, name in enumerate(config.data.targets)
        ]
        # Normalised once: they are the same in every sample.
        self._still = [
            (place, self._normalization.normalize(store.static[name][None], [name])[0])
            for place, name in enumerate(variables)
            if name not in store.channels
        ]

    def shapes(self, samples: int, leads: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a batch's tensors: B samples with K lead times each."""
        targets = (samples, leads, len(self._target), *self._mask.shape)
        return {
            "inputs": (samples, self._inputs, *self._mask.shape),
            "wind": (samples, 2, *self._mask.shape),
            "targets": targets,
            "lead_hours": (samples, leads),
            "valid": targets,
        }

    def size(self, samples: int, leads: int) -> int:
        """Bytes that a batch's tensors take."""
        return sum(_widths(self.shapes(samples, leads)).values())

    def labelled(self, samples: int, leads: int, block: Block, labels: "Labels") -> Batch:
        """The batch that lies in a block of memory, which `batch` filled in another process."""
        places, times, filled = labels
        return Batch(**_views(self.shapes(samples, leads), block), places=places, times=times, filled=filled)

    def batch(
        self,
        times: Hours,
        lead_hours: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Block | None = None,
    ) -> Batch:
        """Read one micro-batch; each hour it needs is read once.

        Args:
            times: (B,) start times; ignored for padding.
            lead_hours: (B, K) [h]. A target hour that is not stored is nowhere valid.
            places: (B,) places in the epoch's order, `PADDING` for samples of weight 0.
            into: at least `size` bytes to lay the tensors in; without it they get memory of their own.

        Raises:
            ValueError: a start time or its history is not in the store, or a shard cannot be read.
            TimeoutError: the file system does not answer, and nobody else watches.
        """
        real = np.flatnonzero(places != PADDING)
        starts = times[real].astype("datetime64[h]")
        leads = lead_hours[real].astype("timedelta64[h]")
        ends = starts[:, None] + leads
        stored = self._store.holds(ends)
        # (1 + number of history hours, samples): the fields of the start, then the earlier ones.
        sources = np.concatenate([starts[None], starts - self._history_hours[:, None]])
        hours, where = np.unique(np.concatenate([sources.ravel(), ends[stored]]), return_inverse=True)
        indices = self._store.locate(hours)
        batch = _views(self.shapes(*lead_hours.shape), into)
        self._blank(batch, places, np.argwhere(~stored), real)
        # Which hour (its number) goes to which inputs of which sample, and to which of its lead times.
        input_hours, end_hours = where[: sources.size].reshape(sources.shape), where[sources.size :]
        rows, lead_places = np.nonzero(stored)
        filled = 0
        for number, index in enumerate(indices):
            takes = end_hours == number
            kinds, samples = np.nonzero(input_hours == number)
            filled += self._put_hour(
                int(index), batch, (kinds, real[samples]), (real[rows[takes]], lead_places[takes])
            )
        for sample, start in zip(real, starts, strict=True):
            for place, name in self._forcings:
                batch["inputs"][sample, place] = torch.from_numpy(forcing(name, start, self._lat, self._lon))
        padding = places == PADDING
        batch["lead_hours"].numpy()[:] = np.where(padding[:, None], 0, lead_hours)
        return Batch(
            **batch,
            places=tuple(places.tolist()),
            times=np.where(padding, np.datetime64("NaT", "h"), times.astype("datetime64[h]")),
            filled=filled,
        )

    def _blank(
        self,
        batch: dict[str, Tensor],
        places: NDArray[np.int64],
        absent: NDArray[np.int64],
        real: NDArray[np.int64],
    ) -> None:
        """Zero padding samples and the targets that are not stored, and mark them invalid."""
        for unread in np.flatnonzero(places == PADDING):
            for name in ("inputs", "wind", "targets", "valid"):
                batch[name][unread] = 0
        for row, lead in absent:
            for name in ("targets", "valid"):
                batch[name][real[row], lead] = 0

    def _put_hour(
        self,
        index: int,
        batch: dict[str, Tensor],
        inputs: tuple[NDArray[np.int64], NDArray[np.int64]],
        ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> int:
        """Read an hour into `inputs` (0 for the start or the number of the history hour from 1, samples) and
        into the targets of `ends` (samples, lead places).

        Only one hour is held at a time: its memory serves for the next, without a page fault.

        Returns:
            Missing input values.
        """
        read = self._store.read_unwatched if self._watched else self._store.read_span
        hour = _Hour.of(read(index, index + 1)[0])
        filled = 0
        for kind, sample in zip(*(each.tolist() for each in inputs), strict=True):
            into = batch["inputs"][sample].numpy()
            if kind:
                filled += _put_channels(hour, self._history[kind - 1], into)
                continue
            for place, still in self._still:
                into[place] = still
            filled += _put_channels(hour, self._dynamic, into)
            self._put_wind(hour, batch["wind"][sample].numpy())
        for end in zip(*ends, strict=True):
            self._put_targets(hour, batch["targets"][end].numpy(), batch["valid"][end].numpy())
        return filled

    def _put_wind(self, hour: "_Hour", into: Fields) -> None:
        """Wind (2, H, W) [m/s], the channel's mean for missing values."""
        for channel in self._wind:
            values = hour.fields[channel.stored]
            into[channel.place] = values
            if not hour.complete:
                into[channel.place][~np.isfinite(values)] = channel.mean

    def _put_targets(self, hour: "_Hour", into: Fields, valid: NDArray[np.bool_]) -> None:
        """Normalised targets (C, H, W), 0 for missing values, and where they count."""
        valid[:] = self._mask
        for channel in self._target:
            channel.normalize(hour.fields, into[channel.place])
            if not hour.complete:
                finite = np.isfinite(hour.fields[channel.stored])
                into[channel.place][~finite] = 0.0
                valid[channel.place] &= finite


def _put_channels(hour: "_Hour", channels: Sequence["_Channel"], into: Fields) -> int:
    """Put normalised channels into inputs (V, H, W), 0 for missing values, which is their mean; how many."""
    missing = 0
    for channel in channels:
        channel.normalize(hour.fields, into[channel.place])
        if not hour.complete:
            gaps = ~np.isfinite(hour.fields[channel.stored])
            into[channel.place][gaps] = 0.0
            missing += int(np.count_nonzero(gaps))
    return missing


def _widths(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Bytes of each tensor; `valid` is bool, the others float32."""
    assert list(shapes)[-1] == "valid"  # single bytes at the end, so that the floats before them stay aligned
    return {name: math.prod(shape) * (1 if name == "valid" else 4) for name, shape in shapes.items()}


def _views(shapes: dict[str, tuple[int, ...]], into: Block | None) -> dict[str, Tensor]:
    """Tensors of a batch, not filled, one behind the other in one block of memory."""
    widths = _widths(shapes)
    block = torch.from_numpy(into) if into is not None else _new_block(sum(widths.values()))
    views: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        kind = torch.bool if name == "valid" else torch.float32
        views[name] = block[start : start + widths[name]].view(kind).view(shape)
        start += widths[name]
    return views


def _new_block(size: int) -> Tensor:
    """Memory, in a loader process shared from the start: nothing is copied to hand it over."""
    untyped: Any = torch.UntypedStorage
    storage = untyped._new_shared(size) if get_worker_info() is not None else untyped(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class _Channel(NamedTuple):
    """A variable: where it goes, where it is stored, and how it is normalised."""

    place: int
    stored: int
    mean: np.float32
    std: np.float32

    @classmethod
    def of(cls, place: int, stored: int, name: str, normalization: Normalization) -> "_Channel":
        return cls(place, stored, np.float32(normalization.mean[name]), np.float32(normalization.std[name]))

    def normalize(self, fields: Fields, into: Fields) -> None:
        """As `Normalization.normalize` does, written where it belongs: a batch is made of few copies."""
        np.subtract(fields[self.stored], self.mean, out=into)
        np.divide(into, self.std, out=into)


class _Hour(NamedTuple):
    """The fields of an hour (C, H, W), and whether all their values are finite, as nearly always."""

    fields: Fields
    complete: bool

    @classmethod
    def of(cls, fields: Fields) -> "_Hour":
        return cls(fields, bool(np.isfinite(fields).all()))
