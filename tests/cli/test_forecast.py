"""`aqtopo forecast` as typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from aqtopo.data.shards import shard_path
from aqtopo.run_directory.batch_job import JOB_DIR

Command = Callable[..., Any]

INIT = "2018-01-03T00"


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_suffix_determines_the_format(
    aqtopo: Command, untrained_run: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out{suffix}"
    ended = aqtopo("forecast", untrained_run, output, "--init", INIT)
    assert ended.code == 0
    assert ended.out == f"{output}: pm25, pm10, so2, no2, co, o3 at 12, 24, 48, 96 h from {INIT} UTC\n"
    with xr.open_dataset(output) as dataset:
        assert dict(dataset.sizes) == {"lead_time": 4, "lat": 8, "lon": 16}
        assert str(dataset["init_time"].values)[:13] == INIT
        assert dataset.attrs["tag"] == "epoch00-step000007-val0.5000"
        assert dataset["pm25"].notnull().all()


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_several_initial_times_are_one_file_that_evaluate_compares(
    aqtopo: Command, untrained_run: Path, tmp_path: Path, suffix: str
) -> None:
    output, later = tmp_path / f"out{suffix}", "2018-01-04T06"
    ended = aqtopo("forecast", untrained_run, output, "--init", INIT, "--init", later, "--init", INIT)
    assert ended.code == 0, ended.err
    assert ended.out.endswith(f"from {INIT}, {later} UTC\n")
    aqtopo("forecast", untrained_run, tmp_path / "second.nc", "--init", later)
    with xr.open_dataset(output) as both, xr.open_dataset(tmp_path / "second.nc") as second:
        assert dict(both.sizes) == {"init_time": 2, "lead_time": 4, "lat": 8, "lon": 16}
        assert both["time"].dims == ("init_time", "lead_time")
        xr.testing.assert_equal(both.isel(init_time=1), second)
    assert aqtopo("evaluate", untrained_run, "--against", output, "--every", "6").code == 0


def test_needs_of_several_initial_times_are_listed(aqtopo: Command, untrained_run: Path) -> None:
    ended = aqtopo("forecast", untrained_run, "--needs", "--init", INIT, "--init", "2018-01-04T06")
    assert [INIT in ended.out, "2018-01-04T06" in ended.out] == [True, True]


def test_existing_forecast_is_replaced_only_with_overwrite(
    aqtopo: Command, untrained_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.nc"
    assert aqtopo("forecast", untrained_run, output, "--init", INIT).code == 0
    again = ("forecast", untrained_run, output, "--init", "2018-01-04T00")
    assert "exists already" in aqtopo(*again).complaint
    assert aqtopo(*again, "--overwrite").code == 0
    with xr.open_dataset(output) as dataset:
        assert str(dataset["init_time"].values)[:10] == "2018-01-04"


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out.nc", ["--init", "2019-06-01T00"], "The nearest time it has is 2018-01-10T23"),
        ("out.nc", ["--init", "soon"], "'soon' is not in ISO 8601"),
        ("out.nc", ["--init", INIT, "--tag", "epoch99"], "no saved state 'epoch99'"),
        ("out.grib", ["--init", INIT], "must end in .zarr or .nc"),
        ("nowhere/out.nc", ["--init", INIT], "does not exist"),
        ("out.nc", [], "--init"),
    ],
)
def test_bad_input_is_refused_before_writing(
    aqtopo: Command, untrained_run: Path, tmp_path: Path, output: str, options: list[str], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert message in aqtopo("forecast", untrained_run, tmp_path / output, *options).complaint
    assert sorted(tmp_path.rglob("*")) == before


def test_directory_without_a_run_is_refused(aqtopo: Command, tmp_path: Path) -> None:
    ended = aqtopo("forecast", tmp_path, tmp_path / "out.nc", "--init", INIT)
    assert "is not a run directory" in ended.complaint


def test_temporary_failures_are_recorded_for_a_requeue(
    aqtopo: Command,
    tiny_config: Callable[..., RunConfig],
    tiny_dataset: xr.Dataset,
    save_untrained: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(JOB_DIR, str(tmp_path))
    store = tmp_path / "damaged.zarr"
    write_store(tiny_dataset, store)
    write_statistics(store, [2016])
    run = save_untrained(tiny_config(data={"store": str(store)}))
    shard = shard_path(store, 0).parents[3] / "22" / "0" / "0" / "0"
    shard.write_bytes(b"")
    assert "is truncated" in aqtopo("forecast", run, tmp_path / "out.nc", "--init", INIT).complaint
    assert (tmp_path / "failed").read_text(encoding="utf-8").startswith("2 The data store")
    assert not (tmp_path / "never").exists()

    assert (
        "has no fields for"
        in aqtopo("forecast", run, tmp_path / "out.nc", "--init", "1999-01-01T00").complaint
    )
    assert (tmp_path / "never").read_text(encoding="utf-8").startswith("2 ")
