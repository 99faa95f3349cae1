"""Power spectra of forecasts and truth: a smooth forecast lacks power at short wavelengths.

Each field is taken without its mean inside the mask, tapered to zero at the edges of the grid (Hann) and
outside the mask; its squared Fourier amplitudes are averaged over rings of equal wavenumber. Distances are
those at the mean latitude. The mask blurs all spectra in the same way, so only ratios to the truth's power
are meaningful.

Shapes: F forecast, B initial time, K horizon, C pollutant, R ring, H x W grid.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.grid import EARTH_RADIUS
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.distributed.process_group import RankGroup
from aqtopo.evaluation.points import ScoredBatch
from aqtopo.evaluation.scores import ScoreAxes, Values, all_reduce

TRUTH = "truth"
KM_PER_DEGREE = np.deg2rad(EARTH_RADIUS) / 1e3
"""Length of a degree of latitude [km]."""

RESOLVED_SHARE = 0.5
"""Minimum share of the truth's power at a resolved wavelength."""


class Spectra:
    """Isotropic power spectra, averaged over the fields that are complete inside the mask.

    Only the first forecast of each day is used: the other forecasts differ little, and transforms take time.

    Args:
        axes: axes of the sums.
        store: provides the grid and the mask.
        init_times: of all processes.
    """

    def __init__(self, axes: ScoreAxes, store: Store, init_times: Hours) -> None:
        days = init_times.astype("datetime64[D]")
        self._taken = init_times[np.unique(days, return_index=True)[1]]
        self._axes, self._inside = axes, store.static["mask"] > 0
        rows, columns = self._inside.shape
        self._taper = np.outer(np.hanning(rows + 2)[1:-1], np.hanning(columns + 2)[1:-1]) * self._inside
        self._rings, self._wavenumbers = _rings(store.lat, store.lon)
        per_pair = (len(axes.horizons_h), len(axes.pollutants))
        self._power = np.zeros((len(axes.forecasts) + 1, *per_pair, self._wavenumbers.size))
        self._fields = np.zeros(per_pair)

    def add(self, batch: ScoredBatch) -> None:
        """Add a batch."""
        complete = (batch.scored | ~self._inside).all(axis=(-2, -1))
        complete &= np.isin(batch.init_times, self._taken)[:, None, None]
        self._fields += complete.sum(axis=0)
        for f, values in enumerate([*(batch.forecasts[name] for name in self._axes.forecasts), batch.truth]):
            for b, k, c in np.argwhere(complete):
                self._power[f, k, c] += self._spectrum(values[b, k, c])

    def _spectrum(self, field: NDArray[np.floating]) -> Values:
        """Return the mean squared amplitude (R,) of each ring."""
        wide = field.astype(np.float64)
        anomaly = np.where(self._inside, wide - wide[self._inside].mean(), 0.0) * self._taper
        power = np.square(np.abs(np.fft.fft2(anomaly))) / np.square(self._taper).sum()
        inside = self._rings >= 0
        size = self._wavenumbers.size
        sums = np.bincount(self._rings[inside], weights=power[inside], minlength=size)
        means: Values = sums / np.bincount(self._rings[inside], minlength=size)
        return means

    def all_reduce(self, ranks: RankGroup) -> None:
        """Sum over all processes."""
        all_reduce((self._power, self._fields), ranks)

    def tables(self) -> Mapping[str, xr.Dataset]:
        """Return summed `power` (forecast, pollutant, horizon, wavelength), truth last, and `fields`."""
        axes, per_pair = self._axes, ("horizon", "pollutant")
        sums = xr.Dataset(
            {
                "power": (("forecast", *per_pair, "wavelength"), self._power),
                "fields": (per_pair, self._fields.astype(np.int64)),
            },
            coords={
                "forecast": [*axes.forecasts, TRUTH],
                "pollutant": list(axes.pollutants),
                "horizon": ("horizon", list(axes.horizons_h), {"units": "hours"}),
                "wavelength": ("wavelength", 1.0 / self._wavenumbers, {"units": "km"}),
            },
        )
        return {"spectra": sums.transpose("forecast", "pollutant", "horizon", "wavelength")}


def _rings(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> tuple[NDArray[np.int64], Values]:
    """Return the ring of each of the (H, W) Fourier modes, -1 for none, and wavenumbers (R,) [km-1].

    Rings are as wide as the coarser spacing of modes, from the longest wave to the smaller Nyquist
    wavenumber.
    """
    dy = abs(lat[1] - lat[0]) * KM_PER_DEGREE
    dx = abs(lon[1] - lon[0]) * KM_PER_DEGREE * np.cos(np.deg2rad(lat.mean()))
    wavenumber = np.hypot(np.fft.fftfreq(lat.size, dy)[:, None], np.fft.fftfreq(lon.size, dx))
    width = max(1.0 / (lat.size * dy), 1.0 / (lon.size * dx))
    count = int(min(0.5 / dx, 0.5 / dy) / width)
    ring = np.rint(wavenumber / width).astype(np.int64) - 1
    ring[ring >= count] = -1
    return ring, width * np.arange(1, count + 1)


def spectral_scores(sums: xr.Dataset) -> xr.Dataset:
    """Compute spectral scores from the sums of `Spectra.tables`.

    Returns:
        `power`, the mean spectrum; `ratio` of each forecast's power to the truth's (forecast, ...);
        `resolved_km` (forecast, ...), the shortest wavelength down to which the ratio stays above
        `RESOLVED_SHARE`, NaN if it is below at the longest; `short_waves` (forecast, ...), the ratio of power
        over the shortest third of the wavelengths.
    """
    power = sums["power"] / sums["fields"].where(sums["fields"] > 0)
    truth = power.sel(forecast=TRUTH, drop=True)
    ratio = power.drop_sel(forecast=TRUTH) / truth.where(truth > 0.0)
    # Wavelengths go from long to short.
    held = (ratio >= RESOLVED_SHARE).astype(int).cumprod("wavelength").astype(bool)
    shortest = power.isel(wavelength=slice(-max(1, power.sizes["wavelength"] // 3), None)).sum("wavelength")
    true_shortest = shortest.sel(forecast=TRUTH, drop=True)
    return xr.Dataset(
        {
            "power": power,
            "ratio": ratio,
            "resolved_km": ratio["wavelength"].where(held).min("wavelength"),
            "short_waves": shortest.drop_sel(forecast=TRUTH) / true_shortest.where(true_shortest > 0.0),
        },
        attrs=sums.attrs,
    )
