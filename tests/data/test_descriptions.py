"""Descriptions of channels: in stores, in datasets for `write_store`, and by CF attributes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from aqtopo.data import describe_variable, open_store, write_statistics, write_store
from aqtopo.variables import STATIC_VARIABLES, VARIABLES, Variable

NH3 = Variable(name="nh3", long_name="ammonia", units="ug m-3", valid_range=(0.0, 500.0), pollutant=True)
FOREST = Variable(name="forest", long_name="forest", units="%", valid_range=(0.0, 100.0), kind="static")


def renamed(dataset: xr.Dataset, old: str, new: str, axis: str = "channel") -> xr.Dataset:
    names = [new if name == old else name for name in dataset[axis].values.tolist()]
    return dataset.assign_coords({axis: names})


def test_a_store_describes_every_channel_but_the_mask(tiny_store: Path) -> None:
    assert open_store(tiny_store).variables == {
        name: VARIABLES[name] for name in (*open_store(tiny_store).channels, *sorted(STATIC_VARIABLES))
    }


def test_a_store_without_descriptions_has_the_defaults(damaged: Path) -> None:
    before = open_store(damaged).variables
    for array in ("fields", "static"):
        attributes = zarr.open_group(damaged, mode="r+")[array].attrs
        for key in list(attributes):
            del attributes[key]
    assert open_store(damaged).variables == before


def test_own_variables_are_read_back(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    own = renamed(renamed(tiny_dataset, "so2", "nh3"), "population", "forest", "static_channel")
    own["static"][1] = 40.0
    write_store(own, tmp_path / "own.zarr", variables=[NH3, FOREST])
    write_statistics(tmp_path / "own.zarr", [2016])
    store = open_store(tmp_path / "own.zarr")
    assert store.variables["nh3"] == NH3
    assert store.variables["forest"] == FOREST
    assert "so2" not in store.variables
    assert store.mean["forest"] == 40.0
    # The attributes of an opened store describe its channels for the next one.
    again = xr.open_zarr(tmp_path / "own.zarr", consolidated=False).drop_vars("shard_blake2b").load()
    write_store(again, tmp_path / "again.zarr")
    assert open_store(tmp_path / "again.zarr").variables == store.variables


@pytest.mark.parametrize("key", ["long_name", "units", "valid_range"])
def test_a_missing_description_is_asked_for_by_name(
    tiny_dataset: xr.Dataset, tmp_path: Path, key: str
) -> None:
    given = {"long_name": "ammonia", "units": "ug m-3", "valid_range": [0.0, 500.0]}
    tiny_dataset["fields"].attrs = {f"channel_{k}": {"nh3": v} for k, v in given.items() if k != key}
    with pytest.raises(
        ValueError, match=rf"no {key} of the channel nh3\. .*variables=\[Variable\(name='nh3'"
    ):
        write_store(renamed(tiny_dataset, "so2", "nh3"), tmp_path / "own.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("units", ["kg m-3", "mg/m3"])
def test_values_are_converted_to_the_described_units(
    tiny_dataset: xr.Dataset, tmp_path: Path, units: str
) -> None:
    factor = {"kg m-3": 1e-9, "mg/m3": 1e-3}[units]
    own = renamed(tiny_dataset, "so2", "nh3")
    place = own["channel"].values.tolist().index("nh3")
    expected = own["fields"][:, place].values.copy()
    own = own.assign(fields=own["fields"].astype(np.float64))
    own["fields"][:, place] *= factor
    own["fields"].attrs["channel_units"] = {"nh3": units}
    write_store(own, tmp_path / "own.zarr", variables=[NH3])
    store = open_store(tmp_path / "own.zarr")
    np.testing.assert_allclose(store.read(5)[place], expected[5], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [(-999.0, "has nh3 = -999 in .*not declared"), (2e3, "far outside 0 to 500 ug m-3"), (-0.1, None)],
)
def test_values_are_checked_by_the_description(
    tiny_dataset: xr.Dataset, tmp_path: Path, value: float, message: str | None
) -> None:
    own = renamed(tiny_dataset, "so2", "nh3")
    own["fields"][3, own["channel"].values.tolist().index("nh3")] = value
    if message is None:  # a small negative concentration
        write_store(own, tmp_path / "own.zarr", variables=[NH3])
        return
    with pytest.raises(ValueError, match=message):
        write_store(own, tmp_path / "own.zarr", variables=[NH3])


def test_a_value_in_the_described_range_is_no_fill_value(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    flux = Variable(name="flux", long_name="heat flux", units="W m-2", valid_range=(-1500.0, 1500.0))
    own = renamed(tiny_dataset, "so2", "flux")
    own["fields"][3, own["channel"].values.tolist().index("flux")] = -99.0
    write_store(own, tmp_path / "own.zarr", variables=[flux])
    store = open_store(tmp_path / "own.zarr")
    assert (store.read(3)[store.channels.index("flux")] == -99.0).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FOREST, "has no channel forest, and it is described"),
        (
            Variable(**{**vars(NH3), "kind": "static", "pollutant": False}),
            "nh3, which is static, in `fields`",
        ),
        (
            Variable(**{**vars(VARIABLES["co"]), "units": "mg m-3"}),
            "describes co in 'mg m-3'. Describe it in 'ug",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    tiny_dataset: xr.Dataset, tmp_path: Path, given: Variable, message: str
) -> None:
    own = renamed(tiny_dataset, "so2", "nh3")
    by_name = {"nh3": NH3, given.name: given}
    with pytest.raises(ValueError, match=message):
        write_store(own, tmp_path / "own.zarr", variables=by_name.values())


def test_cf_attributes_describe_a_variable() -> None:
    attrs = {
        "long_name": "ammonia",
        "units": "ug m-3",
        "valid_min": np.float32(0),
        "valid_max": np.int16(500),
    }
    assert describe_variable(xr.DataArray(0.0, name="nh3", attrs=attrs), pollutant=True) == NH3
    ranged = {"long_name": "ammonia", "units": "ug m-3", "valid_range": np.array([0, 500], np.int16)}
    assert describe_variable(xr.DataArray(0.0, name="x", attrs=ranged), name="nh3", pollutant=True) == NH3


@pytest.mark.parametrize("key", ["long_name", "units", "valid_range"])
def test_a_missing_cf_attribute_is_named(key: str) -> None:
    attrs: dict[str, Any] = {"long_name": "ammonia", "units": "ug m-3", "valid_range": (0.0, 500.0)}
    attrs.pop(key)
    with pytest.raises(ValueError, match=rf"The variable nh3 has no {key}\. .*{key}=\.\.\."):
        describe_variable(xr.DataArray(0.0, name="nh3", attrs=attrs))


def test_the_example_of_the_documentation_runs(
    tiny_dataset: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    example = re.search(r"<!-- own variables -->\n```python\n(.*?)```", text, re.DOTALL)
    assert example
    attrs = {"long_name": "boundary-layer height", "units": "m"}
    own = renamed(renamed(tiny_dataset, "so2", "nh3"), "rh", "blh")
    monkeypatch.chdir(tmp_path)
    exec(example[1], {"cams": xr.Dataset({"blh": ((), 0.0, attrs)}), "blocks": own})
    described = open_store("own.zarr").variables
    assert (described["nh3"].pollutant, described["blh"].units) == (True, "m")
