"""A store's metadata without its data, and whether a run fits them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.metadata import check_fit, read_metadata

TinyConfig = Callable[..., RunConfig]


def test_the_metadata_are_those_of_the_opened_store(tiny_store: Path) -> None:
    store, found = open_store(tiny_store), read_metadata(tiny_store)
    assert (found.path, found.grid, found.variables) == (store.path, store.grid, store.variables)
    assert (found.times == store.times).all()
    assert found.hourly == len(store.channels)


def test_another_form_is_read_too(damaged: Path) -> None:
    time = zarr.open_group(damaged, mode="r+")["time"]
    time.attrs["units"] = "hours since 1970-01-02"
    assert (read_metadata(damaged).times == open_store(damaged).times).all()


def test_a_damaged_store_is_refused_as_by_open_store(damaged: Path) -> None:
    shutil.rmtree(damaged / "channel")
    with pytest.raises(ValueError, match="lacks the coordinate `channel`"):
        read_metadata(damaged)


def test_the_metadata_need_no_xarray(tiny_store: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aqtopo.data.metadata import read_metadata; "
        f"read_metadata(Path({str(tiny_store)!r})); "
        "print([name for name in ('xarray', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"grid": [16, 16]}, r"has 8 x 16 cells, but `data.grid` is 16 x 16. Set `data.grid` to \[8, 16\]"),
        ({"variables": ["u", "v", "elevation", "blh"]}, "lacks the channel blh; it has u, v, temp,"),
        ({"targets": ["pm25", "nh3"]}, "lacks the channel nh3"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(
    tiny_store: Path, tiny_config: TinyConfig, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_fit(read_metadata(tiny_store), tiny_config(data=data))


def test_only_pollutants_are_targets(damaged: Path, tiny_config: TinyConfig) -> None:
    fields = zarr.open_group(damaged, mode="r+")["fields"]
    fields.attrs["channel_pollutant"] = {"o3": False}
    with pytest.raises(ValueError, match=r"does not describe o3 as a pollutant.*Choose from pm10, so2"):
        check_fit(read_metadata(damaged), tiny_config(data={"targets": ["pm25", "o3"]}))


def test_a_pollutant_is_no_weather(damaged: Path, tiny_config: TinyConfig) -> None:
    fields = zarr.open_group(damaged, mode="r+")["fields"]
    fields.attrs["channel_pollutant"] = {"rh": True}
    with pytest.raises(ValueError, match=r"describes rh as static or as a pollutant.*weather_at_horizons"):
        check_fit(read_metadata(damaged), tiny_config(data={"weather_at_horizons": ["u", "rh"]}))


def test_a_static_field_has_no_history(damaged: Path, tiny_config: TinyConfig) -> None:
    group = zarr.open_group(damaged, mode="r+")
    group["static_channel"][1] = "forest"  # type: ignore[index]
    given = {"long_name": "forest", "units": "%", "valid_range": [0.0, 1e9]}
    group["static"].attrs.update({f"channel_{key}": {"forest": value} for key, value in given.items()})
    data = {"variables": ["u", "v", "elevation", "forest"], "history_hours": [6]}
    with pytest.raises(ValueError, match=r"has forest as a static field.*data.history_variables"):
        check_fit(read_metadata(damaged), tiny_config(data=data))
    check_fit(read_metadata(damaged), tiny_config(data={**data, "history_variables": ["u"]}))


def test_published_constants_that_a_variable_lacks_are_missed_before_the_run(
    with_blh: Path, tiny_config: TinyConfig
) -> None:
    data = {"store": str(with_blh), "variables": ["u", "v", "elevation", "blh"]}
    check_fit(read_metadata(with_blh), tiny_config(data=data))
    with pytest.raises(ValueError, match=r"no published mean and standard deviation of blh.*\"dataset\""):
        check_fit(read_metadata(with_blh), tiny_config(data=data | {"normalization": "topoflow"}))
