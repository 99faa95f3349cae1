"""Mean and standard deviation of each channel: computation in one streaming pass, storage, normalisation.

Statistics cover all finite values of the hourly fields in the given calendar years, and all cells of the
static fields, including cells outside the mask, since the model reads them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from aqtopo.data.channels import no_data
from aqtopo.data.levels import implausible_level
from aqtopo.data.metadata import check_published
from aqtopo.data.schema import raise_store_error
from aqtopo.data.store import (
    FURTHER_STATISTICS,
    Report,
    Statistics,
    Store,
    no_progress,
    open_store,
    shard_ranges,
    statistics_attributes,
)
from aqtopo.variables import READ_DEADLINE_S

if TYPE_CHECKING:
    from aqtopo.config import RunConfig

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each channel, (C,) float64 each."""

    count: Values
    mean: Values
    squares: Values

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> "Moments":
        """Return the moments over time and space of the finite values of (n, C, H, W)."""
        wide = values.astype(np.float64)
        finite = np.isfinite(wide)
        axes = (0, 2, 3)
        count = finite.sum(axis=axes).astype(np.float64)
        mean = np.where(finite, wide, 0.0).sum(axis=axes) / np.maximum(count, 1.0)
        deviations = np.where(finite, wide - mean[:, None, None], 0.0)
        return cls(count, mean, (deviations**2).sum(axis=axes))

    @property
    def std(self) -> Values:
        """Population standard deviation (C,); 0 without a value."""
        deviations: Values = np.sqrt(self.squares / np.maximum(self.count, 1.0))
        return deviations

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together (Chan, Golub and LeVeque 1983, pairwise Welford)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        weight = other.count / np.maximum(count, 1.0)
        squares = self.squares + other.squares + delta**2 * self.count * weight
        return Moments(count, self.mean + delta * weight, squares)


def compute_statistics(store: Store, years: Sequence[int], report: Report = no_progress) -> Statistics:
    """Return the statistics of calendar years, with one shard (a day) in memory at a time.

    Raises:
        ValueError: the store has no hour of one of the years, undeclared fill values, impossible values or
            an implausible mean, or a shard cannot be read.
    """
    wanted = tuple(sorted(set(years)))
    absent = sorted(set(wanted) - set(store.years))
    if not wanted or absent:
        raise_store_error(
            store.path,
            f"has no hours in {absent[0]}" if absent else "was asked for statistics over no years",
            f"Choose from its years: {', '.join(map(str, store.years))}.",
        )
    zero = np.zeros(len(store.channels))
    total = Moments(zero, zero, zero)
    ranges = list(shard_ranges(store, wanted))
    wrong: dict[str, tuple[int, float, str]] = {}
    for done, (first, last) in enumerate(ranges, start=1):
        fields = store.read_span(first, last)
        _count_no_data(store, first, fields, wrong)
        total = total.merged(Moments.of(fields))
        report("days of statistics", done, len(ranges))
    if wrong:
        counts = [f"{n} values of {name}, the first {v:g} at {t}" for name, (n, v, t) in wrong.items()]
        raise_store_error(
            store.path,
            f"has fill values or impossible values in the years of the statistics: {'; '.join(counts)}",
            "Set them to NaN, or convert the channel to its units, and write the store anew.",
        )
    known = total.count > 0
    mean = dict(zip(store.channels, np.where(known, total.mean, np.nan).tolist(), strict=True))
    for name in store.channels:
        fault = implausible_level(store.variables[name], mean[name])
        if fault is not None:
            raise_store_error(store.path, fault, f"Write it again with {name} in its units.")
    std = dict(zip(store.channels, np.where(known, total.std, np.nan).tolist(), strict=True))
    for name, variable in store.variables.items():
        if variable.kind == "static":
            values = store.static[name].astype(np.float64)
            mean[name], std[name] = float(values.mean()), float(values.std())
    return Statistics(mean, std, wanted)


def _count_no_data(
    store: Store, first: int, fields: NDArray[np.float32], wrong: dict[str, tuple[int, float, str]]
) -> None:
    """Add values of (n, C, H, W) that are no data to `wrong`: by channel the number, the first, its time."""
    for place, name in enumerate(store.channels):
        found = no_data(store.variables[name], fields[:, place])
        if found.any():
            hour, row, column = np.unravel_index(int(found.argmax()), found.shape)
            known = wrong.get(
                name, (0, float(fields[hour, place, row, column]), str(store.times[first + hour]))
            )
            wrong[name] = (known[0] + int(found.sum()), *known[1:])


def write_statistics(
    path: str | Path,
    years: Sequence[int],
    report: Report = no_progress,
    deadline_s: float = READ_DEADLINE_S,
) -> Statistics:
    """Compute the mean and deviation of each channel and write them to the attributes of the store.

    Statistics of other years are kept beside them.

    Args:
        path: folder of the store.
        years: calendar years [UTC], usually the training years.
        report: callback with the name of the items, the number done and the total number.
        deadline_s: longest wait for the file system [s]; default: 300.

    Returns:
        `mean` and `std` by variable, in its units.

    Raises:
        ValueError: the store is unusable, lacks a year, or cannot be written.
        TimeoutError: the file system did not answer for `deadline_s`.
    """
    store = open_store(path, deadline_s)
    statistics = compute_statistics(store, years, report)
    kept = [each for each in store.statistics if set(each.years) != set(statistics.years)]
    first = not store.statistics or store.statistics[0] not in kept
    ordered = [statistics, *kept] if first else [*kept, statistics]
    further = [statistics_attributes(each) for each in ordered[1:]]
    try:
        zarr.open_group(path, mode="r+").attrs.update(
            statistics_attributes(ordered[0]) | ({FURTHER_STATISTICS: further} if further else {})
        )
    except OSError as error:
        raise_store_error(
            path,
            f"cannot be written ({error})",
            "Statistics are stored in its attributes: allow writing there.",
        )
    return statistics


@dataclass(frozen=True)
class Normalization:
    """Normalisation of fields to about zero mean and unit variance, and its inverse.

    Attributes:
        mean: by variable, in its units.
        std: by variable, in its units, positive: 1 for a constant channel.
    """

    mean: Mapping[str, float]
    std: Mapping[str, float]

    def means(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Return the means of `names`, (C, 1, 1), to broadcast over the grid."""
        return np.array([self.mean[name] for name in names], dtype=np.float32)[:, None, None]

    def stds(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Return the standard deviations of `names`, (C, 1, 1)."""
        return np.array([self.std[name] for name in names], dtype=np.float32)[:, None, None]

    def normalize(self, values: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float32]:
        """Normalise fields.

        Args:
            values: (..., C, H, W) in physical units.
            names: the C variables.

        Returns:
            (..., C, H, W), without units.
        """
        return (values - self.means(names)) / self.stds(names)

    def denormalize(self, values: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float32]:
        """Invert `normalize`.

        Args:
            values: (..., C, H, W) of about unit variance.
            names: the C variables.

        Returns:
            (..., C, H, W) in physical units.
        """
        return values * self.stds(names) + self.means(names)


def normalization_for(config: "RunConfig", store: Store) -> Normalization:
    """Return the normalisation of a run.

    The store must always have statistics: they show that each channel of the run has data. For `dataset` they
    must be those of the training years only, without validation or test data.

    Args:
        config: of the run; `data.normalization` chooses the constants.
        store: of the run.

    Raises:
        ValueError: there are no statistics, they cover other years, or a channel has no finite value.
    """
    years = config.data.train_years
    command = f"Run `aqtopo data statistics {store.path} --years {' '.join(map(str, years))}`."
    if not store.statistics_years:
        raise_store_error(store.path, "has no statistics of its channels", command)
    covered = "; ".join(", ".join(map(str, each.years)) for each in store.statistics)
    if config.data.normalization == "dataset" and set(store.statistics_years) != set(years):
        trained = ", ".join(map(str, years))
        raise_store_error(
            store.path, f"has statistics over {covered}, but the run trains on {trained}", command
        )
    needed = config.data.channels
    over = ", ".join(map(str, store.statistics_years))
    for name in needed:
        if not math.isfinite(store.mean.get(name, math.nan)):
            raise_store_error(
                store.path,
                f"has no finite value of the channel {name} in the years {over}",
                f"Write the store again with values for it, or leave {name} out of the run's variables.",
            )
    if config.data.normalization == "topoflow":
        return _published(store, needed)
    for name in needed:
        if store.std[name] == 0:
            _check_constant(store, name)
    # A constant channel, of standard deviation 0, becomes 0 instead of NaN.
    return Normalization(store.mean, {name: 1.0 if std == 0 else std for name, std in store.std.items()})


def _check_constant(store: Store, name: str) -> None:
    """Refuse a stored standard deviation of 0 if the first and last hours of its years differ."""
    if name in store.static:
        values = store.static[name]
    else:
        ranges = list(shard_ranges(store, store.statistics_years))
        hours = [index for first, last in ranges[:1] + ranges[-1:] for index in (first, last - 1)]
        values = np.array([store.read(index)[store.channels.index(name)] for index in hours])
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() < finite.max():
        years, low, high = " ".join(map(str, store.statistics_years)), finite.min(), finite.max()
        raise_store_error(
            store.path,
            f"has a standard deviation of 0 for {name} and values from {low:g} to {high:g}",
            f"Run `aqtopo data statistics {store.path} --years {years}`.",
        )


def scaling_digest(config: "RunConfig", store: Store) -> str:
    """Return the SHA-256 of what determines the model's inputs: normalisation, terrain, latitudes.

    Longitudes are included only where something is computed from them: distances of the local bias, forcings.
    """
    normalization = normalization_for(config, store)
    digest = hashlib.sha256()
    for names in (config.data.variables, config.data.targets, config.data.weather_at_horizons):
        digest.update(normalization.means(names).tobytes() + normalization.stds(names).tobytes())
    digest.update(store.static["elevation"].tobytes() + store.lat.tobytes())
    if config.model.local_bias or config.data.forcings:
        digest.update(store.lon.tobytes())
    return digest.hexdigest()


def _published(store: Store, needed: Sequence[str]) -> Normalization:
    """Return the published constants of the variables that a run needs."""
    check_published(store, needed)
    mean = {name: store.variables[name].topoflow_mean for name in needed}
    std = {name: store.variables[name].topoflow_std for name in needed}
    return Normalization(cast(dict[str, float], mean), cast(dict[str, float], std))
