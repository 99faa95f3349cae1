"""Forecasts from outside on a store's grid."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.data import Store, open_store
from aqtopo.data.forecasts import OtherForecasts, open_forecasts
from aqtopo.inference.forecast_file import write_forecast
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES
from tests.data.forecast_files import perfect_forecasts

INITS = [np.datetime64(day, "h") for day in ("2018-01-02", "2018-01-04", "2018-01-05")]


@pytest.fixture
def store(tiny_store: Path) -> Store:
    return open_store(tiny_store)


@pytest.fixture
def dataset(store: Store) -> xr.Dataset:
    return perfect_forecasts(store, TARGET_VARIABLES, INITS)


Written = Callable[[xr.Dataset], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(dataset: xr.Dataset, name: str = "cams.zarr") -> Path:
        write_forecast(dataset, tmp_path / name)
        return tmp_path / name

    return write


def opened(path: Path, store: Store) -> OtherForecasts:
    return open_forecasts(path, store, TARGET_VARIABLES, HORIZONS_H)


def test_axes_may_run_the_other_way(store: Store, dataset: xr.Dataset, written: Written) -> None:
    turned = dataset.isel(lat=slice(None, None, -1), lead_time=slice(None, None, -1))
    straight = opened(written(dataset), store).at(np.array(INITS[:2]))
    np.testing.assert_array_equal(
        opened(written(turned, "turned.zarr"), store).at(np.array(INITS[:2])), straight
    )


def assert_alike(other: OtherForecasts, dataset: xr.Dataset) -> None:
    stacked = np.stack([dataset[name].values for name in TARGET_VARIABLES], axis=2)
    np.testing.assert_allclose(other.at(np.array(INITS)), stacked, rtol=1e-5, atol=1e-2)


def test_packed_files_are_joined_without_wrapping(store: Store, dataset: xr.Dataset, tmp_path: Path) -> None:
    paths = []
    for place, start in enumerate((2, 0, 1)):
        part = dataset.isel(init_time=[start]).drop_encoding()
        encoding = {}
        for name in TARGET_VARIABLES:
            low, high = float(part[name].min()), float(part[name].max())
            encoding[name] = {
                "dtype": "int16",
                "scale_factor": (high - low) / 6e4,
                "add_offset": (low + high) / 2,
                "_FillValue": -32768,
            }
        paths.append(tmp_path / f"cams_{place}.nc")
        part.to_netcdf(paths[-1], encoding=encoding)
    other = open_forecasts(paths, store, TARGET_VARIABLES, HORIZONS_H)
    assert other.name == "cams"
    assert_alike(other, dataset)


def test_another_layout_and_other_units_are_read(store: Store, dataset: xr.Dataset, tmp_path: Path) -> None:
    changed = dataset.drop_vars("time").rename(
        init_time="time", lead_time="prediction_timedelta", lat="latitude", lon="longitude", pm25="pm2p5"
    )
    changed["pm2p5"] = (changed["pm2p5"].astype("f8") * 1e-9).assign_attrs(units="kg m**-3")
    hours = dataset["lead_time"].values * np.timedelta64(1, "h")
    changed = changed.assign_coords(
        longitude=changed["longitude"] - 360, prediction_timedelta=hours.astype("m8[ns]")
    ).expand_dims(level=[1000])
    changed.to_zarr(tmp_path / "other.zarr", zarr_format=2, encoding={})
    assert_alike(opened(tmp_path / "other.zarr", store), dataset)


def test_files_may_name_a_variable_differently(store: Store, dataset: xr.Dataset, tmp_path: Path) -> None:
    names = [{}, {"pm25": "pm2p5"}, {"pm25": "a_name", "o3": "go3"}]
    for place, renamed in enumerate(names):
        part = dataset.isel(init_time=[place]).rename(renamed)
        part.to_netcdf(tmp_path / f"cams_{place}.nc")
    paths = sorted(tmp_path.glob("*.nc"))
    assert_alike(open_forecasts(paths, store, TARGET_VARIABLES, HORIZONS_H), dataset)
    dataset.isel(init_time=[2]).drop_vars("o3").to_netcdf(tmp_path / "lacking.nc")
    with pytest.raises(ValueError, match=r"lacking\.nc has no o3"):
        open_forecasts([*paths[:2], tmp_path / "lacking.nc"], store, TARGET_VARIABLES, HORIZONS_H)


def test_the_air_of_a_mass_ratio_may_be_named_differently(
    store: Store, dataset: xr.Dataset, tmp_path: Path
) -> None:
    shape = dataset["pm25"].dims, np.ones(dataset["pm25"].shape, "f4")
    ratio = (dataset["pm25"] * 1e-9 / (9e4 / (287.05 * 300.0))).assign_attrs(units="kg kg-1")
    given = dataset.assign(
        pm25=ratio,
        psfc=(shape[0], shape[1] * 9e4, {"units": "Pa"}),
        temp=(shape[0], shape[1] * 300, {"units": "K"}),
    )
    given.isel(init_time=[0]).to_netcdf(tmp_path / "0.nc")
    given.isel(init_time=[1, 2]).rename(psfc="sp", temp="t2m").to_netcdf(tmp_path / "1.nc")
    other = open_forecasts([tmp_path / "0.nc", tmp_path / "1.nc"], store, TARGET_VARIABLES, HORIZONS_H)
    assert_alike(other, dataset)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_store_without_consolidated_metadata_gives_no_warning(
    store: Store, dataset: xr.Dataset, tmp_path: Path
) -> None:
    dataset.to_zarr(tmp_path / "cams.zarr", consolidated=False)
    assert opened(tmp_path / "cams.zarr", store).init_times.size == len(INITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("o3"), "has no o3"),
        (
            lambda d: d.assign(co=d["co"].assign_attrs(units="ppb")),
            "has co in units that cannot be used: 'ppb'",
        ),
        (lambda d: d.assign_coords(lon=d["lon"] + 0.5), "is on another grid"),
        (lambda d: d.isel(lat=slice(1, None)), r"is on another grid than .* Interpolate it to that grid"),
        (lambda d: d.isel(lead_time=slice(1, None)), r"\(it has 24, 48, 96 h\).*that have 12, 24, 48, 96 h"),
        (lambda d: d.drop_vars("init_time"), "has no initial time"),
        (
            lambda d: d.assign_coords(init_time=d["init_time"] + np.timedelta64(30, "m")),
            "has the initial time 2018-01-02T00:30",
        ),
        (lambda d: d.isel(init_time=[0, 0, 1]), "has the initial time 2018-01-02T00:00 more than once"),
        (lambda d: d.expand_dims(member=2), r"on the further dimension member \(size 2\)"),
        (lambda d: d.isel(lon=0), "has no dimension of longitudes"),
        (lambda d: d.assign_coords(init_time=[0, 1, 2]), "has initial times of the type"),
        (
            lambda d: d.assign_coords(lead_time=("lead_time", [12.5, 24, 48, 96], d["lead_time"].attrs)),
            r"has no lead time of 12 h \(it has 12.5, 24, 48, 96 h\)",
        ),
        (
            lambda d: d.assign_coords(lead_time=("lead_time", [12, 12, 48, 96], d["lead_time"].attrs)),
            "has a lead time twice",
        ),
        (
            lambda d: d.isel(lat=[0, 0, 1, 2, 3, 4, 5, 6, 7]),
            "more than once",
        ),
    ],
)
def test_incompatible_forecasts_are_refused(
    store: Store,
    dataset: xr.Dataset,
    tmp_path: Path,
    change: Callable[[xr.Dataset], xr.Dataset],
    message: str,
) -> None:
    change(dataset).to_zarr(tmp_path / "cams.zarr", zarr_format=3, consolidated=True)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "cams.zarr", store)


@pytest.mark.parametrize("factor", [1e-3, 1e-9])
@pytest.mark.parametrize("name", TARGET_VARIABLES)
def test_other_units_with_the_same_label_are_refused(
    store: Store, dataset: xr.Dataset, written: Written, name: str, factor: float
) -> None:
    other = opened(
        written(dataset.assign({name: (dataset[name] * factor).assign_attrs(units="ug m-3")})), store
    )
    with pytest.raises(ValueError, match=rf"has a mean {name} of .*: it is in other units than its `units`"):
        other.at(np.array(INITS[:1]))


@pytest.mark.parametrize(
    ("name", "message"), [("gone.nc", "there is no such file"), ("gone.zarr", "there is no such file")]
)
def test_missing_files_are_named(store: Store, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / name, store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.json", "is not a NetCDF file: it begins with {}"),
        ("absent.nc", "there is no such file"),
        ("", "is a directory without a zarr group"),
    ],
)
def test_an_unreadable_forecast_file_is_refused_in_one_sentence(
    store: Store, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        open_forecasts(tmp_path / name, store, TARGET_VARIABLES, HORIZONS_H)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200
