import json
from pathlib import Path

import numpy as np
import xarray as xr

from aqtopo.data import open_store, write_store
from aqtopo.data.summary import gaps, summarize


def test_gaps_are_named_by_their_first_and_last_hour(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    write_store(tiny_dataset.isel(time=np.r_[0:10, 11:50, 53:240]), tmp_path / "gaps.zarr")
    found = [(str(first), str(last)) for first, last in gaps(open_store(tmp_path / "gaps.zarr"))]
    assert found == [("2016-01-01T10", "2016-01-01T10"), ("2016-01-03T02", "2016-01-03T04")]


def test_a_summary_survives_json_and_counts_hours(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    summary = json.loads(json.dumps(summarize(store), allow_nan=False))
    assert summary["grid"] == [8, 16]
    assert summary["hours_by_year"] == {"2016": 240, "2017": 240, "2018": 240}
    assert [gap["hours"] for gap in summary["gaps"]] == [8784 - 240, 8760 - 240]
    assert summary["channels"]["co"] == {
        "units": "ug m-3",
        "kind": "hourly",
        "mean": store.mean["co"],
        "std": store.std["co"],
    }
    assert summary["channels"]["mask"] == {"units": "1", "kind": "static", "mean": None, "std": None}
    assert summary["simulated"] is True
    assert summary["digest"] == store.digest
