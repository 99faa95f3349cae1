"""Use of aqtopo from Python: load a trained model, forecast, score; train.

The names are available as `aqtopo.load` and so on.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from aqtopo.checkpoint.tags import CHECKPOINTS, STATE_FILE
from aqtopo.config import RunConfig
from aqtopo.data.fields import open_fields, read_fields
from aqtopo.data.schema import Hours
from aqtopo.evaluation.evaluate import EvalOptions, EvaluatedSplit, evaluate
from aqtopo.evaluation.points import WEIGHTINGS
from aqtopo.evaluation.results import SCORES_FILE, read_score_file
from aqtopo.evaluation.scores import tidy_scores
from aqtopo.inference.card import Card
from aqtopo.inference.export import export_module, export_run
from aqtopo.inference.forecast import InitTime, forecast, forecasts, parse_init_time
from aqtopo.inference.load import LoadedRun, load_model
from aqtopo.inference.weather import PERFECT, Need, Weather, check_weather, needs, open_weather
from aqtopo.model import AirQualityViT

WeatherSource = str | Path | Sequence[str | Path] | xr.Dataset
"""`perfect`, files, or a dataset with initial and lead times."""


def load(path: str | Path, tag: str = "best", store: str | Path | None = None) -> "Model":
    """Load a trained model.

    Args:
        path: run directory, the folder of one of its states, or folder of `aqtopo export`.
        tag: state of a run: `best`, `last` or its name.
        store: the data, in place of the training's store. For a run, the same data in another place; for an
            exported model any data on its grid. An exported model can forecast from fields without a store.

    Raises:
        ValueError: there is no such model, state or store, or they do not fit.
        RefusedError: the files have changed since they were saved.
    """
    folder = Path(path)
    if folder.parent.name == CHECKPOINTS and (folder / STATE_FILE).is_file():
        folder, tag = folder.parent.parent, folder.name
    return Model(load_model(folder, tag, None if store is None else Path(store)))


class Model:
    """Trained model with its configuration and data.

    Attributes:
        run: what was loaded; the other modules of aqtopo take it.
    """

    def __init__(self, run: LoadedRun) -> None:
        self.run = run

    def __repr__(self) -> str:
        data, rows, columns = self.config.data, *self.config.data.grid
        return (
            f"<aqtopo.Model {self.config.name}, {self.run.tag_name}: {', '.join(data.targets)} at "
            f"{', '.join(map(str, data.horizons))} h on {rows} x {columns} cells>"
        )

    @property
    def module(self) -> AirQualityViT:
        """The network, in evaluation mode."""
        return self.run.model

    @property
    def config(self) -> RunConfig:
        """Configuration of the training."""
        return self.run.config

    def needs(self, init_time: InitTime | None = None) -> pd.DataFrame:
        """Return what a forecast reads: a row for each hour and channel.

        Args:
            init_time: initial time [UTC], to add the column `time`.

        Returns:
            `lead_time` [h] after the start, negative before it; `channel`; `units`; `source`, which is
            `fields` or `weather`; and `time` [UTC] if `init_time` is given.

        Raises:
            ValueError: `init_time` is no time.
        """
        time = np.datetime64("1970-01-01", "h") if init_time is None else parse_init_time(init_time)
        stored, ahead = needs(self.run.store, self.config.data, time)
        rows = [
            (need.lead_h, name, self.run.store.variables[name].units, source)
            for source, found in (("fields", stored), ("weather", ahead))
            for need in found
            for name in need.variables
        ]
        frame = pd.DataFrame(rows, columns=["lead_time", "channel", "units", "source"])
        return (
            frame if init_time is None else frame.assign(time=time + pd.to_timedelta(frame["lead_time"], "h"))
        )

    def forecast(
        self,
        start: InitTime | Sequence[InitTime] | Hours | xr.Dataset,
        weather: WeatherSource | None = None,
        *,
        init_time: InitTime | None = None,
    ) -> xr.Dataset:
        """Forecast all pollutants and horizons.

        Args:
            start: one or several initial times [UTC] of the model's store; or fields, a dataset with the
                variables and hours that `needs` lists, on the model's grid. Names, axes and units are
                recognised as in files from outside; latitudes may run either way.
            weather: the weather to come, for a model that reads it: files or a dataset of a weather forecast,
                or `perfect`, the later hours of the store or of the fields.
            init_time: initial time within the fields; default: their last hour.

        Returns:
            CF dataset with a variable (lead_time, lat, lon) for each pollutant, in its units; `init_time` is
            the first dimension if several times were given.

        Raises:
            ValueError: fields or weather are missing, in unusable units, or impossible.
            FloatingPointError: the network returns values that are not finite.
        """
        if isinstance(start, xr.Dataset):
            chosen = self._weather(weather)
            run, time = self._on_fields(start, init_time, chosen == PERFECT)
            return forecast(run, time, chosen)
        if init_time is not None:
            raise ValueError(
                "init_time is for a start from fields. Give the initial times as the first argument."
            )
        chosen = self._weather(weather)
        given = np.asarray(start)
        times = [parse_init_time(each) for each in given.ravel()]
        if given.ndim == 0:
            return forecast(self.run, times[0], chosen)
        if not times:
            raise ValueError("no initial time is given. Give at least one, such as '2018-01-15T00'.")
        return forecasts(self.run, times, chosen)

    def evaluate(
        self,
        split: EvaluatedSplit = "test",
        *,
        weather: WeatherSource | None = None,
        every_hours: int | None = None,
        weighting: Literal["none", "area"] = "none",
    ) -> xr.Dataset:
        """Score the model and the baselines over a split of its store.

        Args:
            split: `test` or `validation`.
            weather: the weather to come, for a model that reads it; default: `perfect`.
            every_hours: interval of the initial times [h], in place of the configured one.
            weighting: of the cells: `none`, or their `area`.

        Returns:
            `value` (pollutant, lead_time, score, forecast), in the pollutant's units except for the score
            `acc`; `units` of the pollutant and `count`, the number of scored points, are coordinates.
            `to_dataframe()` gives a tidy table. `aqtopo evaluate` also scores by season, hour, area and
            station.

        Raises:
            ValueError: an argument has another value, or the split or the training years have no data.
        """
        _check_scoring(split, weighting, every_hours)
        chosen = self._weather(weather)
        options = EvalOptions(
            weather=None if chosen == PERFECT else chosen, every_hours=every_hours, weighting=weighting
        )
        return tidy_scores(evaluate(self.run, split, options=options).scores)

    def _weather(self, weather: WeatherSource | None) -> Weather | None:
        """Open the weather to come; refuse it for a model that reads none."""
        if weather is None or (isinstance(weather, str) and weather == PERFECT):
            return None if weather is None else PERFECT
        check_weather(self.config, PERFECT)
        if isinstance(weather, xr.Dataset):
            return open_weather(weather, self.run.store, self.config.data)
        files = [weather] if isinstance(weather, str | Path) else weather
        return open_weather([Path(file) for file in files], self.run.store, self.config.data)

    def _on_fields(
        self, dataset: xr.Dataset, init_time: InitTime | None, perfect: bool
    ) -> tuple[LoadedRun, np.datetime64]:
        """Return the model with the fields as its store, and the initial time."""
        given, data = open_fields(dataset), self.config.data
        last = given["time"].values[-1].astype("datetime64[h]")
        time = last if init_time is None else parse_init_time(init_time)
        stored, ahead = needs(self.run.store, data, time)
        read: list[Need] = [*stored, *ahead] if perfect else stored
        hours = np.unique(np.array([need.time for need in read], "datetime64[h]"))
        names = list(dict.fromkeys(name for need in read for name in need.variables))
        return replace(self.run, store=read_fields(given, self.run.store, names, hours)), time


def _check_scoring(split: str, weighting: str, every_hours: int | None) -> None:
    for name, value, accepted in (
        ("split", split, get_args(EvaluatedSplit)),
        ("weighting", weighting, tuple(WEIGHTINGS)),
    ):
        if value not in accepted:
            raise ValueError(
                f"{name} = {value!r}: it must be {' or '.join(f'`{each}`' for each in accepted)}."
            )
    if every_hours is not None and every_hours < 1:
        raise ValueError(f"every_hours = {every_hours}: it must be at least 1, in hours.")


def export(
    model: "Model | AirQualityViT | str | Path",
    out: str | Path,
    *,
    config: RunConfig | None = None,
    store: str | Path | None = None,
) -> Card:
    """Write a model into a new folder that `load` reads: weights, terrain and a card, without pickle.

    Args:
        model: from `load`; a run directory; or a module that other code trained.
        out: new folder. Its files have the names that Hugging Face uses.
        config: of a module: its inputs, targets, grid and training years.
        store: of a module: the store with its grid and statistics; default: that of `config`.

    Returns:
        The card, which is the content of `config.json` in the folder.

    Raises:
        ValueError: `out` exists, or the parts do not fit each other.
    """
    if isinstance(model, nn.Module):
        if not isinstance(model, AirQualityViT) or config is None:
            raise ValueError(
                f"A module of the class {type(model).__name__} cannot be exported with config = "
                f"{config!r:.40}. Give an AirQualityViT, without wrappers, and the configuration of its data."
            )
        return export_module(model, Path(out), config, None if store is None else Path(store))
    if config is not None or store is not None:
        raise ValueError("config and store are for a module. Leave them out for a loaded model or a run.")
    run = model.run if isinstance(model, Model) else load(model).run
    scores = read_score_file(run.run_dir) if (run.run_dir / SCORES_FILE).is_file() else None
    return export_run(run, Path(out), None if scores is None else scores.model_dump(mode="json"))


def train(config: RunConfig, *, stop_after: int | None = None, resume: str = "auto") -> Path:
    """Train a model in this process, or as one rank of several under a launcher.

    Args:
        config: from `aqtopo.load_config`.
        stop_after: step after which the run is saved and ends; default: at the end of its epochs.
        resume: saved state to resume: `auto` (the last one, if there is any), `never`, a tag or a path.

    Returns:
        The run directory, for `aqtopo.load`.

    Raises:
        ValueError: the configuration, the data or the number of processes does not fit; nothing is written.
        RefusedError: the saved state cannot be resumed.
    """
    from aqtopo.distributed.launch import read_launch
    from aqtopo.training.prepare import ResumeOptions
    from aqtopo.training.start import train as run_training

    run_training(config, read_launch(), stop_after, ResumeOptions(resume))
    return Path(config.training.run_dir)
