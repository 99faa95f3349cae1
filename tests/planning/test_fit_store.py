"""Configurations that fit stores of any grid, years and variables."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.config import RunConfig, load_config
from aqtopo.data import write_statistics, write_store
from aqtopo.planning.fit_store import TEMPLATES, Fitted, fit_store
from aqtopo.shipped import shipped_folder
from aqtopo.variables import Variable

Fit = Callable[..., Fitted]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Write a dataset to a store, with statistics of `train_years`, and fit a configuration to it."""

    def fitted(
        dataset: xr.Dataset,
        train_years: tuple[int, ...] = (2016,),
        like: str = "demo",
        overrides: Sequence[str] = (),
        **own: object,
    ) -> Fitted:
        store = tmp_path / "s.zarr"
        write_store(dataset, store, **own)
        if train_years:
            write_statistics(store, train_years)
        return fit_store(like, store, tmp_path / "mine.json", overrides)

    return fitted


def on_grid(dataset: xr.Dataset, rows: int, columns: int) -> xr.Dataset:
    fine = dataset.interp(lat=np.linspace(20.0, 48.0, rows), lon=np.linspace(74.0, 134.0, columns))
    fine["static"].loc[{"static_channel": "mask"}] = 1.0
    return fine.astype(np.float32)


def moved_by_years(dataset: xr.Dataset, *years: int) -> xr.Dataset:
    """Repeat the first ten days of the dataset in other years."""
    first = dataset.isel(time=slice(240))
    starts = [np.datetime64(f"{year}-01-01", "ns") for year in years]
    parts = [first.assign_coords(time=first["time"] - first["time"][0] + start) for start in starts]
    return xr.concat(parts, "time", data_vars="minimal")


def test_short_names_are_shipped_configurations() -> None:
    for name in TEMPLATES.values():
        assert load_config(shipped_folder("ds_configs") / f"{name}.json").name == name


@pytest.mark.parametrize(
    ("grid", "patch", "regions", "local_path"),
    [
        ((8, 16), 4, (1, 1), False),
        ((7, 13), 1, (7, 1), False),
        ((15, 20), 5, (1, 1), True),
        ((16, 40), 4, (2, 2), True),
    ],
)
def test_patch_and_regions_divide_the_grid(
    fit: Fit,
    tiny_dataset: xr.Dataset,
    grid: tuple[int, int],
    patch: int,
    regions: tuple[int, int],
    local_path: bool,
) -> None:
    config = fit(on_grid(tiny_dataset, *grid)).config
    assert config.data.grid == grid
    assert (config.model.patch, config.model.regions, config.model.local_path) == (patch, regions, local_path)


@pytest.mark.parametrize(
    ("years", "described", "train", "validation", "test"),
    [
        ((2016, 2017, 2018), (2016,), (2016,), 2017, 2018),
        ((2015, 2016, 2017, 2018), (2015, 2016), (2015, 2016), 2017, 2018),
        ((2015, 2016, 2017, 2018), (2018,), (2018,), 2016, 2017),
    ],
)
def test_the_years_of_the_statistics_train(
    fit: Fit,
    tiny_dataset: xr.Dataset,
    years: tuple[int, ...],
    described: tuple[int, ...],
    train: tuple[int, ...],
    validation: int,
    test: int,
) -> None:
    fitted = fit(moved_by_years(tiny_dataset, *years), described)
    data = fitted.config.data
    assert (data.train_years, data.validation_years, data.test_years) == (train, (validation,), (test,))
    assert ("unused: 2015" in fitted.choices[0]) == (described == (2018,))


def test_statistics_that_no_split_can_use_are_refused_with_the_command(
    fit: Fit, tiny_dataset: xr.Dataset
) -> None:
    with pytest.raises(ValueError, match=r"aqtopo data statistics .* --years 2016`"):
        fit(tiny_dataset, (2016, 2017, 2018))


def test_a_store_of_two_usable_years_is_refused(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=r"has 2 year\(s\) with hours .*: 2016, 2017\. "):
        fit(tiny_dataset.isel(time=slice(500)))


def test_variables_are_those_with_values(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    tiny_dataset["fields"].loc[{"channel": ["so2", "rh"]}] = np.nan
    fitted = fit(tiny_dataset)
    data = fitted.config.data
    assert not {"so2", "rh"} & {*data.variables, *data.targets}
    assert "co" in data.targets
    assert "without rh, so2: the store has no values of them" in fitted.choices


def test_own_variables_are_inputs_and_own_pollutants_are_targets(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    own = partial(Variable, standard_name=None, valid_range=(0.0, 1e6))
    nh3 = own(name="nh3", long_name="ammonia", units="ug m-3", pollutant=True)
    forest = own(name="forest", long_name="forest", units="%", kind="static")
    channels = ["nh3" if name == "so2" else str(name) for name in tiny_dataset["channel"].values]
    static = [
        "forest" if name == "population" else str(name) for name in tiny_dataset["static_channel"].values
    ]
    own = tiny_dataset.assign_coords(channel=channels, static_channel=static)
    fitted = fit(own, variables=[nh3, forest])
    data = fitted.config.data
    assert data.variables[-2:] == ("nh3", "forest")
    assert data.targets[-1] == "nh3"
    assert data.history_variables is not None
    assert "nh3" in data.history_variables
    assert "forest" not in data.history_variables
    assert "with the store's own nh3, forest" in fitted.choices


def test_what_the_store_does_not_determine_stays(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    fitted, base = fit(tiny_dataset), load_config("ds_configs/demo_cpu.json")
    config = fitted.config
    assert config.optimizer == base.optimizer
    assert config.deepspeed == base.deepspeed
    assert (config.model.dim, config.model.depth) == (base.model.dim, base.model.depth)
    assert config.training.validate_every == 15, "all micro-steps of an epoch"
    assert "8 samples per step: micro-batch 4 x accumulation 1 x 1 node(s) x 2 rank(s)" in fitted.choices


def test_warm_up_is_at_most_a_tenth_of_the_run(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    fitted = fit(tiny_dataset)
    steps = 15 * fitted.config.training.epochs
    assert fitted.config.schedule.warmup_steps == steps // 10 < 20
    assert f"warm-up of {steps // 10} steps instead of 20, a tenth of the run's {steps}" in fitted.choices


def test_an_override_of_the_warm_up_stays(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    fitted = fit(tiny_dataset, overrides=["schedule.warmup_steps=12"])
    assert fitted.config.schedule.warmup_steps == 12
    assert not [line for line in fitted.choices if "warm-up" in line]


def test_text_is_the_configuration_with_short_lists(
    fit: Fit, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    fitted = fit(tiny_dataset)
    text = fitted.to_json()
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "mine.json") == fitted.config
    assert '"grid": [8, 16]' in text
    assert isinstance(fitted.config, RunConfig)


def test_a_run_that_the_store_is_too_small_for_is_refused(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="fewer than one micro-step needs"):
        fit(tiny_dataset, like="lumi")


def test_an_unknown_configuration_is_refused_with_the_known_ones(fit: Fit, tiny_dataset: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=r"Choose demo, small, lumi or one of .*resume_reference"):
        fit(tiny_dataset, like="tiny")
