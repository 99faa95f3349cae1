"""The files that an ablation leaves: results.json and results.nc for programs, results.md for a page."""

import json
import math
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr

from aqtopo.ablation.plan import Ablation
from aqtopo.ablation.tables import sheets
from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions
from aqtopo.evaluation.forecast_file import write_forecast


def write_results(ablation: Ablation, result: xr.Dataset) -> Path:
    """Write all three; the path of the JSON file."""
    pages = [sheet.as_markdown() for sheet in sheets(result)]
    write_durably(ablation.out / "results.md", "\n".join(pages))
    write_forecast(result, ablation.out / "results.nc", overwrite=True)
    path = ablation.out / "results.json"
    write_durably(path, json.dumps(_as_json(ablation, result), indent=2, allow_nan=False) + "\n")
    return path


def _as_json(ablation: Ablation, result: xr.Dataset) -> dict[str, Any]:
    """The result with all that is needed to know later what it is a result of."""
    return {
        "format_version": 1,
        "run": ablation.base.name,
        "config_digest": ablation.base.digest,
        "store": ablation.base.data.store,
        "factors": {factor.path: list(factor.levels) for factor in ablation.factors},
        "seeds": list(ablation.seeds),
        "starts": result.attrs["alike"],
        "variants": [_variant(result, label) for label in result["variant"].values],
        "changes": [
            _change(result.sel(contrast=contrast, score=score))
            for contrast in result["contrast"].values
            for score in result["score"].values
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": package_versions(),
    }


def _variant(result: xr.Dataset, label: str) -> dict[str, Any]:
    one = result.sel(variant=label)
    return {
        "variant": str(label),
        "val_loss": _numbers(one["val_loss"]),
        "overall_rmse": _numbers(one["overall"]),
        "alpha": _numbers(one["alpha"]),
        "rmse": {
            f"{pollutant} {horizon} h": _numbers(one["rmse"].sel(pollutant=pollutant, horizon=horizon))
            for pollutant in one["pollutant"].values
            for horizon in one["horizon"].values
        },
    }


def _change(one: xr.Dataset) -> dict[str, Any]:
    bounds = ("change", "days_low", "days_high", "seeds_low", "seeds_high")
    return {
        "contrast": str(one["contrast"].values),
        "score": str(one["score"].values),
        **{name: _numbers(one[name])[0] for name in bounds},
        "shown": bool(one["shown"]),
    }


def _numbers(values: xr.DataArray) -> list[float | None]:
    """JSON has no NaN: null."""
    return [value if math.isfinite(value) else None for value in values.values.ravel().tolist()]
