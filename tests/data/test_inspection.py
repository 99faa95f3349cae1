import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.data.inspection import Finding, gaps, inspect_store, summarize_store
from aqtopo.data.shards import CHECKSUMS
from aqtopo.variables import STATIC_CHANNELS, TARGET_VARIABLES


def faults(path: Path) -> list[Finding]:
    return [finding for finding in inspect_store(path) if finding.severity == "fault"]


def shard(store: Path, number: int) -> Path:
    return store / "fields" / "c" / str(number) / "0" / "0" / "0"


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_valid_store_has_no_faults(tiny_store: Path) -> None:
    found = inspect_store(tiny_store)
    assert {(finding.severity, finding.subject) for finding in found} == {("note", "gaps")}
    assert found[0].text == "2016-01-11T00 to 2016-12-31T23 (8544 h)"


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda p: flip(p, 300), "has a wrong checksum"),
    "flipped byte in the padding of the index": (lambda p: flip(p, -3), "no valid index"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-10]), "no valid index"),
    "gone": (Path.unlink, "is missing"),
    "a link to itself": (lambda p: (p.unlink(), p.symlink_to(p)), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_listed_with_shard_and_time(damaged: Path, damage: str) -> None:
    inflict, message = DAMAGE[damage]
    inflict(shard(damaged, 12))
    texts = [finding.text for finding in faults(damaged) if finding.subject == "shard"]
    assert any("fields/c/12/0/0/0" in text and "2017-01-03T00" in text for text in texts)
    assert any(message in text for text in texts)


def test_statistics_are_not_called_stale_for_hours_that_cannot_be_read(damaged: Path) -> None:
    flip(shard(damaged, 3), 300)
    found = inspect_store(damaged)
    assert {finding.subject for finding in found if finding.severity == "fault"} == {"shard"}
    assert Finding("note", "statistics", "not compared: 24 h of their years cannot be read") in found


def test_shard_replaced_by_another_valid_one_is_detected(damaged: Path) -> None:
    shard(damaged, 3).write_bytes(shard(damaged, 4).read_bytes())
    (fault,) = [finding for finding in faults(damaged) if finding.subject == "shard"]
    assert fault.text.startswith("fields/c/3/0/0/0 (from 2016-01-04T00) differs from its checksum")


def test_store_without_checksums_is_reported(damaged: Path) -> None:
    del zarr.open_group(damaged, mode="r+")[CHECKSUMS]
    (fault,) = faults(damaged)
    assert "0 checksums for 30 shards" in fault.text


def test_statistics_of_other_data_are_stale(damaged: Path) -> None:
    kept = zarr.open_group(damaged, mode="r+").attrs
    kept.update({"channel_mean": {**kept["channel_mean"], "pm25": 30.0}})  # type: ignore[dict-item]
    (fault,) = faults(damaged)
    assert fault.subject == "statistics"
    assert fault.text.startswith("pm25: mean 30 and deviation")


def scaled(name: str, factor: float) -> Callable[[xr.Dataset], None]:
    def change(dataset: xr.Dataset) -> None:
        dataset["static"].loc[{"static_channel": name}] *= factor

    return change


def field_scaled(name: str, factor: float) -> Callable[[xr.Dataset], None]:
    def change(dataset: xr.Dataset) -> None:
        dataset["fields"].loc[{"channel": name}] *= factor

    return change


def emptied(hours: slice, channels: slice) -> Callable[[xr.Dataset], None]:
    def change(dataset: xr.Dataset) -> None:
        dataset["fields"][hours, channels] = np.nan

    return change


WRONG: dict[str, tuple[Callable[[xr.Dataset], None], str, str]] = {
    "elevation in km": (scaled("elevation", 1e-3), "fault", r"no point higher than 3\.\d+ m.*kilometres"),
    "no cell in the mask": (scaled("mask", 0), "fault", "no cell of value 1 in its mask"),
    "latitudes upside down": (scaled("lat2d", -1), "fault", "lat2d that differs from its axis"),
    "too cold": (field_scaled("temp", 0.7), "note", r"temp: \d+ values somewhat outside 180 to 340 K"),
    "no value in an hour": (
        emptied(slice(30, 31), slice(None)),
        "fault",
        "1 hours without any value, the first 2016-01-02T06",
    ),
    "a channel without values": (
        emptied(slice(None), slice(3, 4)),
        "fault",
        r"rh: 86400 values are missing inside the mask \(100\.000%\)",
    ),
    "some values missing": (
        emptied(slice(30, 31), slice(3, 4)),
        "note",
        r"rh: 120 values are missing inside the mask \(0\.139%\)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_physically_impossible_values_are_listed(
    tiny_dataset: xr.Dataset, tmp_path: Path, wrong: str
) -> None:
    change, severity, message = WRONG[wrong]
    change(tiny_dataset)
    write_store(tiny_dataset, tmp_path / "wrong.zarr")
    write_statistics(tmp_path / "wrong.zarr", [2016])
    found = [finding for finding in inspect_store(tmp_path / "wrong.zarr") if finding.subject != "gaps"]
    assert [f.severity for f in found if re.search(message, f.text)] == [severity]


def test_small_negative_values_are_a_note_with_the_number_that_write_store_returns(
    tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    for name, value, hours in (("pm25", -1.0, 30), ("rh", 112.0, 2), ("v", -121.0, 1)):
        tiny_dataset["fields"].loc[{"channel": name}][30 : 30 + hours, 2, 3] = value
    outside = write_store(tiny_dataset, tmp_path / "new.zarr")
    assert outside == {"pm25": 30, "rh": 2, "v": 1}
    write_statistics(tmp_path / "new.zarr", [2016])
    found = [finding for finding in inspect_store(tmp_path / "new.zarr") if finding.subject == "range"]
    assert {finding.severity for finding in found} == {"note"}
    assert [finding.text for finding in found if "pm25" in finding.text] == [
        "pm25: 30 values somewhat outside 0 to 5000 ug m-3 are kept, the first at 2016-01-02T06"
    ]
    assert len(found) == 3


@pytest.mark.parametrize(("name", "value"), [("pm25", -999.0), ("v", -99.0), ("temp", 20.0), ("co", -99.0)])
def test_values_that_training_refuses_are_faults(damaged: Path, name: str, value: float) -> None:
    fields = zarr.open_array(damaged / "fields", mode="r+")
    fields[400, open_store(damaged).channels.index(name), 2, 3] = value
    (found,) = [finding for finding in faults(damaged) if finding.subject == "range"]
    assert re.match(f"{name}: 1 fill values or values far outside .*, the first at 2017-01-07T16", found.text)


@pytest.mark.parametrize("factor", [1e-3, 1e-9])
@pytest.mark.parametrize("name", [*TARGET_VARIABLES, "rh"])
def test_a_level_of_other_units_in_any_year_is_a_fault(damaged: Path, name: str, factor: float) -> None:
    store, fields = open_store(damaged), zarr.open_array(damaged / "fields", mode="r+")
    hours, place = np.flatnonzero(store.times >= np.datetime64("2018-01-01")), store.channels.index(name)
    fields[hours[0] :, place] = np.asarray(fields[hours[0] :, place]) * (0.01 if name == "rh" else factor)
    (found,) = [finding for finding in faults(damaged) if finding.subject == "range"]
    assert re.match(rf"2018 has a mean {name} of .*: it is in other units", found.text)


@pytest.mark.parametrize("name", TARGET_VARIABLES)
def test_statistics_of_a_level_of_other_units_are_a_fault(damaged: Path, name: str) -> None:
    kept = zarr.open_group(damaged, mode="r+").attrs
    kept.update({"channel_mean": {**kept["channel_mean"], name: 1e-8}})  # type: ignore[dict-item]
    assert any(f"has a mean {name} of 1e-08, outside" in fault.text for fault in faults(damaged))


def test_a_fill_value_as_elevation_is_a_fault(damaged: Path) -> None:
    static = zarr.open_array(damaged / "static", mode="r+")
    static[STATIC_CHANNELS.index("elevation"), :2] = -99.0
    assert any(
        "has elevation = -99 in 32 of 128 cells: a fill value" in fault.text for fault in faults(damaged)
    )


def test_store_that_cannot_be_opened_is_one_fault(tmp_path: Path) -> None:
    (fault,) = inspect_store(tmp_path / "nowhere.zarr")
    assert (fault.severity, fault.subject) == ("fault", "schema")
    assert "There is no data store" in fault.text


def test_gaps_are_named_by_their_first_and_last_hour(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    write_store(tiny_dataset.isel(time=np.r_[0:10, 11:50, 53:240]), tmp_path / "gaps.zarr")
    found = [(str(first), str(last)) for first, last in gaps(open_store(tmp_path / "gaps.zarr"))]
    assert found == [("2016-01-01T10", "2016-01-01T10"), ("2016-01-03T02", "2016-01-03T04")]


def test_a_summary_survives_json_and_counts_hours(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    summary = json.loads(json.dumps(summarize_store(store), allow_nan=False))
    assert summary["grid"] == [8, 16]
    assert summary["hours_by_year"] == {"2016": 240, "2017": 240, "2018": 240}
    assert [gap["hours"] for gap in summary["gaps"]] == [8784 - 240, 8760 - 240]
    assert summary["channels"]["co"] == {
        "long_name": "carbon monoxide",
        "standard_name": "mass_concentration_of_carbon_monoxide_in_air",
        "units": "ug m-3",
        "valid_range": [0.0, 1e5],
        "pollutant": True,
        "kind": "hourly",
        "mean": store.mean["co"],
        "std": store.std["co"],
    }
    assert summary["channels"]["mask"]["units"] == "1"
    assert summary["channels"]["mask"]["mean"] is None
    assert summary["simulated"] is True
    assert summary["digest"] == store.digest
