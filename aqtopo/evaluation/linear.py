"""Linear baselines: a ridge regression for each cell, from the fields at the cell and the time.

Predictors of a cell, normalised: a constant, the fields of the initial time, two harmonics of the day, one of
the year, the first day harmonic times each field and, for `linear_same`, the run's earlier fields and weather
at the valid times of all horizons. A missing input counts as its channel's mean; a time that lacks any target
of a cell is left out for that cell.

Shapes: T initial time, P predictor, J = K C output (horizon, pollutant), M cells, H x W grid.
"""

import functools
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aqtopo.checkpoint.files import write_tensors
from aqtopo.config import DataConfig
from aqtopo.data.forcings import DAYS_PER_YEAR, HOURS_PER_DAY
from aqtopo.data.read_check import HourCheck
from aqtopo.data.samples import usable_times
from aqtopo.data.schema import HOURS_PER_SHARD, Hours
from aqtopo.data.shards import stored_checksums
from aqtopo.data.statistics import Normalization
from aqtopo.data.store import Report, Store, no_progress
from aqtopo.distributed.process_group import SINGLE_RANK, RankGroup, shard
from aqtopo.evaluation.points import LINEAR
from aqtopo.evaluation.ridge import PENALTIES, RidgeSums
from aqtopo.refusal import READ_ERRORS
from aqtopo.safe_files import replacing
from aqtopo.variables import DYNAMIC_VARIABLES

MAX_TIMES = 4000
"""Most initial times of a fit; of more, every n-th is taken."""

HOURS_PER_PREDICTOR = 3
"""Fewest initial times of the fit for each predictor."""

TIMES_PER_BLOCK = 64
"""Times of one product of matrices; part of the result's last digits."""

MAX_SUM_BYTES = 2**29
"""Memory of the sums of one pass; a larger grid is fitted in several passes, rows by rows."""

CACHED_SHARDS = 16
"""Days of fields in memory: those of an initial time's history and horizons."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Predictors:
    """Fields that a regression uses at a cell.

    Attributes:
        variables: of the initial time.
        history: variables with their hours before the initial time.
        weather: variables with their hours after the initial time.
    """

    variables: tuple[str, ...]
    history: tuple[tuple[str, int], ...] = ()
    weather: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of_store(cls, store: Store) -> "Predictors":
        """All fields of a store; CAQRA's first, in their usual order."""
        order = {name: place for place, name in enumerate(DYNAMIC_VARIABLES)}
        return cls(tuple(sorted(store.channels, key=lambda name: order.get(name, len(order)))))

    @classmethod
    def of_run(cls, store: Store, data: DataConfig) -> "Predictors":
        """The fields that a run itself reads."""
        own = tuple(name for name in data.variables if name in store.channels)
        weather = tuple((name, hours) for hours in data.horizons for name in data.weather_at_horizons)
        return cls(own, data.history, weather)

    def __len__(self) -> int:
        """Number of predictors P."""
        return 1 + 6 + 3 * len(self.variables) + len(self.history) + len(self.weather)


@dataclass(frozen=True, eq=False)
class Linear:
    """A fitted regression.

    Attributes:
        predictors: its inputs.
        coefficients: (P, J, H, W), 0 in cells without a time to fit to.
        penalty: chosen ridge penalty.
        times: number of initial times of the fit.
    """

    predictors: Predictors
    coefficients: FloatArray
    penalty: float
    times: int

    @property
    def described(self) -> str:
        """Description for readers of the scores."""
        return (
            f"ridge regression for each cell with {len(self.predictors)} predictors, fitted to {self.times} "
            f"hours of the training years; penalty {self.penalty:g}, chosen on the validation years"
        )


class LinearBaseline:
    """A regression with the store that it reads.

    Args:
        store: data store.
        data: targets, horizons and years.
        predictors: inputs.
        name: name in the progress.
    """

    def __init__(self, store: Store, data: DataConfig, predictors: Predictors, name: str = LINEAR) -> None:
        self._store, self._data, self.predictors, self._name = store, data, predictors, name
        positive = {name: std if std > 0 else 1.0 for name, std in store.std.items()}
        self._normalization = Normalization(store.mean, positive)
        named = [*predictors.variables, *data.targets]
        named += [name for name, _ in (*predictors.history, *predictors.weather)]
        self._hours = HourCheck(store, named)
        self._day = functools.lru_cache(CACHED_SHARDS)(self._read_day)
        self._shape = (store.lat.size, store.lon.size)

    def fit_once(self, run_dir: Path, report: Report = no_progress, ranks: RankGroup = SINGLE_RANK) -> Linear:
        """Return the fit, from a file beside the store or in the run directory if it was made before.

        Raises:
            ValueError: as `fit`.
        """
        digest, path = self._digest(), Path(self._store.path)
        folders = (path.with_name(f"{path.name}.baselines"), run_dir / "baselines")
        files = [folder / f"linear-{digest[:16]}.safetensors" for folder in folders]
        outputs = len(self._data.horizons) * len(self._data.targets)
        for file in files:
            # Rank 0 decides, since a file may appear between the looks of two ranks.
            if int(ranks.all_reduce_sum(torch.tensor(int(ranks.rank == 0 and file.is_file())))):
                return _read(file, self.predictors, (len(self.predictors), outputs, *self._shape))
        fitted = self.fit(report, ranks)
        if ranks.rank == 0:
            _write(fitted, files)
        return fitted

    def _digest(self) -> str:
        """Return the SHA-256 of what determines the fit."""
        data = self._data
        checksums = stored_checksums(self._store.path)
        settings = {
            "version": 1,
            "store": self._store.digest,  # metadata and statistics
            "hours": hashlib.sha256(checksums.tobytes()).hexdigest(),
            "predictors": asdict(self.predictors),
            "targets": data.targets,
            "horizons": data.horizons,
            "years": [data.train_years, data.validation_years],
            "penalties": PENALTIES,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def fit_times(self) -> tuple[Hours, Hours]:
        """Return the initial times of the fit, and those on which the penalty is chosen.

        Raises:
            ValueError: there are too few training times, or no validation time.
        """
        data = self._data
        train, validation = (
            self._initial_times(years) for years in (data.train_years, data.validation_years)
        )
        if train.size < HOURS_PER_PREDICTOR * len(self.predictors):
            raise ValueError(
                f"a linear regression with {len(self.predictors)} predictors needs at least "
                f"{HOURS_PER_PREDICTOR * len(self.predictors)} hours, and the training years "
                f"{', '.join(map(str, data.train_years))} have {train.size} in {self._store.path} with all "
                "fields and targets. Score the run on a store with more hours of its training years."
            )
        if not validation.size:
            raise ValueError(
                f"the validation years {', '.join(map(str, data.validation_years))} have no hour in "
                f"{self._store.path} with all fields and targets, so the regression's penalty cannot be "
                "chosen. Score the run on a store that holds its validation years."
            )
        return train, validation

    def fit(self, report: Report = no_progress, ranks: RankGroup = SINGLE_RANK) -> Linear:
        """Fit to the training years and choose the penalties on the validation years.

        The ranks share the times.

        Raises:
            ValueError: as `fit_times`, or a shard cannot be read.
        """
        train, validation = self.fit_times()
        found, errors = [], np.zeros(len(PENALTIES))
        shares = [shard(_blocks(times), ranks) for times in (train, validation)]
        row_blocks = list(self._row_blocks())
        steps, due = itertools.count(), len(row_blocks) * sum(map(len, shares))

        def advance() -> None:
            if due:
                report(f"blocks of the regression {self._name}", next(steps), due)

        advance()
        for rows in row_blocks:
            train_sums, validation_sums = (self._sums(blocks, rows, advance, ranks) for blocks in shares)
            candidates = train_sums.solve()
            errors += [validation_sums.squared_error(candidate) for candidate in candidates]
            found.append(np.stack([candidate.permute(1, 2, 0).float().numpy() for candidate in candidates]))
        best = int(errors.argmin())
        coefficients = np.concatenate([candidates[best] for candidates in found], axis=2)
        shape = (*coefficients.shape[:2], *self._shape)
        return Linear(self.predictors, coefficients.reshape(shape), PENALTIES[best], train.size)

    def forecast(self, fitted: Linear, times: Hours, weather: FloatArray | None = None) -> FloatArray:
        """Return the forecasts (T, K, C, H, W) from initial times (T,), in physical units.

        `weather` (T, K, A, H, W), in physical units, replaces the store's at the valid times.
        """
        data = self._data
        inputs = self._inputs(times, slice(None))
        if weather is not None:
            given = self._normalization.normalize(weather, data.weather_at_horizons)
            ahead = torch.from_numpy(given).flatten(3).flatten(1, 2).permute(2, 0, 1)
            inputs[..., -len(self.predictors.weather) :] = ahead
        coefficients = torch.from_numpy(fitted.coefficients).flatten(2)
        values = torch.einsum("mtp,pjm->tjm", inputs, coefficients)
        shape = (len(times), len(data.horizons), len(data.targets), *self._shape)
        return self._normalization.denormalize(values.numpy().reshape(shape), data.targets)

    def _initial_times(self, years: Sequence[int]) -> Hours:
        earlier = sorted({hours for _, hours in self.predictors.history})
        times = usable_times(self._store.times, years, self._data.horizons, history_hours=earlier)
        chosen: Hours = times[:: max(1, math.ceil(times.size / MAX_TIMES))]
        return chosen

    def _row_blocks(self) -> Iterator[slice]:
        predictors, outputs = len(self.predictors), len(self._data.horizons) * len(self._data.targets)
        row_bytes = 8 * self._shape[1] * predictors * (predictors + outputs)
        rows = max(1, MAX_SUM_BYTES // row_bytes)
        for first in range(0, self._shape[0], rows):
            yield slice(first, first + rows)

    def _sums(
        self, own: Sequence[Hours], rows: slice, advance: Callable[[], None], ranks: RankGroup
    ) -> RidgeSums:
        """Return the sums of products over the blocks of times of all ranks; `own` are those of this rank.

        `advance` is called after each block.
        """
        cells = len(range(self._shape[0])[rows]) * self._shape[1]
        outputs = len(self._data.horizons) * len(self._data.targets)
        sums = RidgeSums.zeros(cells, len(self.predictors), outputs)
        for block in own:
            inputs, targets = self._inputs(block, rows), self._targets(block, rows)
            missing = ~torch.isfinite(targets).all(2)
            inputs[missing], targets[missing] = 0.0, 0.0
            sums.products.add_(inputs.mT @ torch.cat([inputs, targets], dim=2))
            sums.squares.add_(targets.square().sum(1))
            advance()
        return RidgeSums(ranks.all_reduce_sum(sums.products), ranks.all_reduce_sum(sums.squares))

    def _inputs(self, times: Hours, rows: slice) -> Tensor:
        """Return the predictors (M, T, P); 0, a channel's mean, for missing values."""
        fields = self._fields(times, self.predictors.variables)[..., rows, :]
        offsets = [(name, -hours) for name, hours in self.predictors.history]
        others = [
            self._fields(times + np.timedelta64(hours, "h"), [name])[..., rows, :]
            for name, hours in [*offsets, *self.predictors.weather]
        ]
        hour = times.astype("datetime64[h]").astype(np.int64)
        day, year = 2 * np.pi * hour / HOURS_PER_DAY, 2 * np.pi * hour / HOURS_PER_DAY / DAYS_PER_YEAR
        waves = [wave(angle) for angle in (day, 2 * day, year) for wave in (np.cos, np.sin)]
        common = np.stack([np.ones(day.shape), *waves], axis=1).astype(np.float32)[:, :, None, None]
        shape = (*common.shape[:2], *fields.shape[2:])
        parts = [np.broadcast_to(common, shape), fields, fields * common[:, 1:2], fields * common[:, 2:3]]
        values = np.nan_to_num(np.concatenate([*parts, *others], axis=1), nan=0.0)
        return torch.from_numpy(values).flatten(2).permute(2, 0, 1).contiguous()

    def _targets(self, times: Hours, rows: slice) -> Tensor:
        """Return the outputs (M, T, J), NaN for missing values and masked cells."""
        leads = [np.timedelta64(hours, "h") for hours in self._data.horizons]
        values = np.concatenate([self._fields(times + lead, self._data.targets) for lead in leads], axis=1)
        values = np.where(self._store.static["mask"] > 0, values, np.nan)[..., rows, :]
        return torch.from_numpy(values).flatten(2).permute(2, 0, 1).contiguous()

    def _fields(self, times: Hours, names: Sequence[str]) -> FloatArray:
        """Return normalised fields (T, C, H, W), NaN where missing."""
        channels = [self._store.channels.index(name) for name in names]
        fields = [
            self._day(index // HOURS_PER_SHARD)[index % HOURS_PER_SHARD, channels]
            for index in self._store.locate(times).tolist()
        ]
        normalised: FloatArray = self._normalization.normalize(np.stack(fields), names)
        return normalised

    def _read_day(self, number: int) -> FloatArray:
        first = number * HOURS_PER_SHARD
        return self._hours.read_span(first, min(first + HOURS_PER_SHARD, self._store.times.size))


def _blocks(times: Hours) -> list[Hours]:
    """Return times in blocks that ranks share; they are the same at any number of ranks."""
    return [times[first : first + TIMES_PER_BLOCK] for first in range(0, times.size, TIMES_PER_BLOCK)]


def _write(fitted: Linear, files: Sequence[Path]) -> None:
    """Write a fit to the first of the files whose folder can be written; warn if there is none."""
    metadata = {"penalty": repr(fitted.penalty), "times": str(fitted.times)}
    for file in files:
        try:
            file.parent.mkdir(exist_ok=True)
            with replacing(file) as temporary:
                write_tensors(
                    temporary,
                    {"coefficients": torch.from_numpy(np.ascontiguousarray(fitted.coefficients))},
                    metadata,
                )
            return
        except (OSError, SafetensorError) as error:  # the latter if the disk is full
            problem = f"{file.parent} ({error})"
    warnings.warn(
        "the regression cannot be kept and will be fitted again each time: no folder can be written, the "
        f"last tried is {problem}",
        stacklevel=2,
    )


def _read(file: Path, predictors: Predictors, shape: tuple[int, ...]) -> Linear:
    """Read a fit.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(file, "numpy") as opened:
            metadata, coefficients = opened.metadata(), opened.get_tensor("coefficients")
        if coefficients.shape != shape or coefficients.dtype != np.float32:
            raise ValueError(
                f"its coefficients are {coefficients.dtype} {coefficients.shape} instead of {shape}"
            )
        return Linear(predictors, coefficients, float(metadata["penalty"]), int(metadata["times"]))
    except (SafetensorError, *READ_ERRORS) as error:
        raise ValueError(
            f"the regression in {file} is damaged ({error}). Remove it; it is fitted anew."
        ) from error
