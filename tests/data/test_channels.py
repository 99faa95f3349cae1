"""Variables of a dataset from outside: names, units, fill values, impossible magnitudes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.data.channels import GAS_CONSTANT_DRY_AIR, LoadedChannel, OnInvalid, open_channel, read_channel
from aqtopo.data.outside import normalise, open_outside
from aqtopo.variables import VARIABLES
from tests.data.outside_files import make_hours


def read(dataset: xr.Dataset, name: str = "pm25", on_invalid: OnInvalid = "refuse") -> LoadedChannel:
    return read_channel(normalise(dataset, "a.nc"), VARIABLES[name], on_invalid=on_invalid)


def change(
    dataset: xr.Dataset, name: str, function: Callable[[xr.DataArray], xr.DataArray], units: str
) -> xr.Dataset:
    return dataset.assign({name: function(dataset[name]).assign_attrs(units=units)})


@pytest.mark.parametrize(
    ("name", "function", "units"),
    [
        ("pm25", lambda a: a * 1e-9, "kg m**-3"),
        ("co", lambda a: a / 1000, "mg m-3"),
        ("temp", lambda a: a.astype("f8") - 273.15, "degC"),
        ("psfc", lambda a: a / 100, "hPa"),
        ("rh", lambda a: a / 100, "1"),
    ],
)
def test_values_are_in_the_variables_units(
    name: str, function: Callable[[xr.DataArray], xr.DataArray], units: str
) -> None:
    hours = make_hours((name,))
    found = read(change(hours, name, function, units), name)
    np.testing.assert_allclose(found.values, hours[name], rtol=1e-6)
    assert found.values.dtype == np.float32
    assert found.values.attrs["units"] == VARIABLES[name].units
    assert (found.masked, found.outside) == (0, 0)


def test_a_ratio_of_masses_is_converted_with_the_datasets_pressure_and_temperature() -> None:
    hours = make_hours(("pm25", "psfc", "temp"))
    density = hours["psfc"] / (GAS_CONSTANT_DRY_AIR * hours["temp"])
    ratio = hours.assign(pm25=(hours["pm25"] * 1e-9 / density).assign_attrs(units="kg kg-1"))
    celsius = change(ratio, "temp", lambda a: a.astype("f8") - 273.15, "degC")
    np.testing.assert_allclose(read(celsius.isel(lat=slice(None, None, -1))).values, hours["pm25"], rtol=1e-5)
    with pytest.raises(ValueError, match=r"pm25 in 'kg kg-1'.*needs surface pressure.*has no psfc"):
        read(ratio.drop_vars("psfc"))


@pytest.mark.parametrize(
    ("name", "function", "units"),
    [
        ("psfc", lambda a: a.where(a.lat != a.lat[0], -9999.0), "Pa"),
        ("psfc", lambda a: a / 100, "Pa"),
        ("temp", lambda a: a.astype("f8") - 273.15, "K"),
        ("temp", lambda a: a.where(a.lat != a.lat[0], -9999.0), "degC"),
    ],
)
def test_pressure_and_temperature_of_a_ratio_of_masses_are_checked(
    name: str, function: Callable[[xr.DataArray], xr.DataArray], units: str
) -> None:
    hours = make_hours(("pm25", "psfc", "temp"))
    ratio = hours.assign(pm25=(hours["pm25"] * 1e-9).assign_attrs(units="kg kg-1"))
    with pytest.raises(ValueError, match=f"has {name} = "):
        read(change(ratio, name, function, units))


ELEVATIONS = [("ft", 1 / 0.3048), ("km", 1e-3), ("gpm", 1.0), ("m**2 s**-2", 9.80665)]


@pytest.mark.parametrize(("units", "factor"), ELEVATIONS)
def test_elevation_is_in_metres(units: str, factor: float) -> None:
    heights = make_hours().isel(time=0)["temp"] * 10.0
    dataset = (heights * factor).assign_attrs(units=units).to_dataset(name="z")
    np.testing.assert_allclose(read(dataset, "elevation").values, heights, rtol=1e-6)


def test_units_are_asked_for() -> None:
    hours = make_hours()
    for attributes in ({}, {"units": " "}, {"units": 1}):
        hours["pm25"].attrs = attributes
        with pytest.raises(ValueError, match=r"a\.nc has pm25 without units.*attrs\['units'\] = 'ug m-3'"):
            read(hours)
    with pytest.raises(ValueError, match=r"pm25 in units that cannot be used: 'K' .*'ug m-3'"):
        read(change(hours, "pm25", lambda a: a, "K"))


# Fill values and impossible magnitudes.

FILLS = [-9999.0, -999.0, -99.0, 9.96921e36, 9.97e36, 1e20, -32767.0, -999.9, 3e38]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    ("name", "units", "factor"), [("pm25", "ug m-3", 1), ("pm25", "mg m-3", 1e-3), ("temp", "K", 1)]
)
def test_undeclared_fill_values_are_refused_or_masked(
    fill: float, name: str, units: str, factor: float
) -> None:
    hours = make_hours((name,))
    given = change(hours, name, lambda a: a * factor, units)
    given[name][1, 2, 3] = given[name][2, 5, 7] = fill
    with pytest.raises(
        ValueError,
        match=rf"{name} = .*2 of 144 values.*at time 2016-01-01T01:00, latitude 22, longitude 103",
    ):
        read(given, name)
    found = read(given, name, "mask")
    assert found.masked == 2
    assert np.isnan(found.values.values[1, 2, 3])
    np.testing.assert_allclose(
        found.values.where(found.values.notnull(), hours[name]), hours[name], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("pm25", 2e4), ("pm25", -60.0), ("temp", 25.0), ("temp", 400.0), ("psfc", 1000.0), ("rh", 130.0)],
)
def test_impossible_magnitudes_are_refused_or_masked(name: str, value: float) -> None:
    hours = make_hours((name,))
    hours[name][0, 0, 1] = value
    with pytest.raises(
        ValueError,
        match=rf"{name} = .*1 of 144 values are far outside .*longitude 101.*Correct the attribute `units`",
    ):
        read(hours, name)
    assert read(hours, name, "mask").masked == 1


def test_small_negative_concentrations_are_kept_and_counted() -> None:
    hours = make_hours()
    hours["pm25"][0, 0, :3] = -4.0
    found = read(hours)
    assert (found.masked, found.outside) == (0, 3)
    assert float(found.values[0, 0, 0]) == -4.0


def test_missing_values_stay_missing() -> None:
    hours = make_hours()
    hours["pm25"][0] = np.nan
    hours["pm25"][1, 0, :2] = [np.inf, -np.inf]
    assert int(read(hours).values.isnull().sum()) == 50
    with pytest.raises(ValueError, match="has no value of pm25"):
        read(
            hours.assign(pm25=hours["pm25"] * np.nan).assign(
                pm25=lambda d: d["pm25"].assign_attrs(units="ug m-3")
            )
        )


def test_a_depression_is_no_fill_value() -> None:
    heights = (
        (make_hours().isel(time=0, drop=True)["temp"] * 0 + 12.0)
        .assign_attrs(units="m")
        .to_dataset(name="elevation")
    )
    heights["elevation"][0, 0] = -99.0
    assert float(read(heights, "elevation").values.min()) == -99.0
    heights["elevation"][0, 0] = -9999.0
    with pytest.raises(
        ValueError, match="elevation = -9999 in 1 of 48 values, first at latitude 20, longitude 100"
    ):
        read(heights, "elevation")


def test_a_part_is_read_and_checked_alone() -> None:
    hours = make_hours()
    hours["pm25"][2, 0, 0] = -9999.0
    channel = open_channel(normalise(hours, "a.nc"), VARIABLES["pm25"])
    np.testing.assert_array_equal(channel.load(time=[0, 1]).values, hours["pm25"][:2])
    with pytest.raises(ValueError, match="-9999"):
        channel.load(time=[2])


# Names.


@pytest.mark.parametrize(
    ("name", "given", "attributes"),
    [
        ("pm25", "pm2p5", {}),
        ("pm25", "PM2.5", {}),
        ("pm25", "PM25", {}),
        ("pm25", "PM2_5_DRY", {}),
        ("pm25", "x1", {"standard_name": "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air"}),
        ("pm25", "x1", {"standard_name": "mass_concentration_of_pm2p5_ambient_aerosol_in_air"}),
        ("temp", "t2m", {}),
        ("temp", "2t", {}),
        ("temp", "T2", {"standard_name": "air_temperature"}),
        ("psfc", "sp", {"standard_name": "surface_air_pressure"}),
        ("rh", "x1", {"standard_name": "relative_humidity"}),
        ("rh", "rh", {"standard_name": "unknown"}),
    ],
)  # fmt: skip
def test_variables_are_found(name: str, given: str, attributes: dict[str, str]) -> None:
    hours = make_hours((name, "co"))
    renamed = hours.rename({name: given})
    renamed[given].attrs |= attributes
    np.testing.assert_array_equal(read(renamed, name).values, hours[name])


def test_ambiguous_missing_and_contradicting_names_are_refused() -> None:
    hours = make_hours()
    with pytest.raises(ValueError, match=r"has more than one variable for temp: t2m, tas.*Rename"):
        read(hours.assign(t2m=hours["temp"], tas=hours["temp"]).drop_vars("temp"), "temp")
    with pytest.raises(
        ValueError, match=r"has no o3 \(ozone\); it has pm25, temp\. Rename it to o3, or give it"
    ):
        read(hours, "o3")
    hours["pm25"].attrs["standard_name"] = VARIABLES["pm10"].standard_name
    with pytest.raises(ValueError, match=r"has pm25 with the standard_name .*which is pm10"):
        read(hours)
    with pytest.raises(ValueError, match=r"has pm25 of the type"):
        read(make_hours().assign(pm25=make_hours()["pm25"].astype(str)))


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    hours = make_hours()
    hours.to_netcdf(tmp_path / "a.nc", encoding={"pm25": {"fletcher32": True}})
    content = bytearray((tmp_path / "a.nc").read_bytes())
    content[content.index(hours["pm25"].values.tobytes()[:40])] ^= 0xFF
    (tmp_path / "a.nc").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nc is damaged in pm25.*again"):
        read_channel(open_outside(tmp_path / "a.nc"), VARIABLES["pm25"])
