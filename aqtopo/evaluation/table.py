"""Scores for people: a table for the terminal, and one sentence that says who won."""

import rich.box
import xarray as xr
from rich.table import Table

from aqtopo.evaluation.cases import MODEL
from aqtopo.evaluation.evaluate import Evaluation
from aqtopo.evaluation.scores import count_wins
from aqtopo.variables import VARIABLES

TABLE_WIDTH = 120
"""Columns of text that the table needs with two references."""


def table_width(scores: xr.Dataset) -> int:
    """Columns of text that the table of these scores needs: two more figures for every further reference."""
    return TABLE_WIDTH + sum(len(str(name)) + 15 for name in scores["reference"].values[2:])


def score_table(scores: xr.Dataset) -> Table:
    """RMSE of every forecast, the lowest marked, and the model's skill, MAE and bias, a row a pair.

    Args:
        scores: what `aqtopo.evaluation.evaluate` gives.
    """
    head = scores.attrs
    units = ", ".join(dict.fromkeys(scores["units"].values.tolist()))
    table = Table(
        title=f"{head['run']} ({head['tag']}) on {head['split']} {', '.join(map(str, head['years']))}",
        caption=f"RMSE, MAE and bias in {units}; * lowest RMSE; skill = 1 - RMSE / RMSE of the reference, "
        "positive is better; ACC = correlation of anomalies from climatology",
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("pollutant", no_wrap=True)
    table.add_column("lead", justify="right", no_wrap=True)
    for name in scores["forecast"].values:
        table.add_column(f"RMSE\n{name}", justify="right", no_wrap=True)
    for name in scores["reference"].values:
        table.add_column(f"skill vs\n{name}", justify="right", no_wrap=True)
    for measure in ("ACC", "MAE", "bias"):
        table.add_column(f"{measure}\n{MODEL}", justify="right", no_wrap=True)
    for pollutant in scores["pollutant"].values:
        for horizon in scores["horizon"].values:
            table.add_row(*_row(scores.sel(pollutant=pollutant, horizon=horizon)))
        table.add_section()
    return table


def stratum_table(done: Evaluation, stratum: str) -> Table:
    """The model's RMSE by season, hour, area or station, and its skill against the better reference there.

    Raises:
        ValueError: there are no such scores.
    """
    if stratum not in done.strata:
        raise ValueError(f"there are no scores by {stratum} here. Give observations with --stations CSV.")
    scores = done.strata[stratum]
    table = Table(
        title=f"RMSE of the model by {stratum}, and skill against the better reference",
        box=rich.box.SIMPLE_HEAD,
    )
    table.add_column("pollutant", no_wrap=True)
    table.add_column(stratum, no_wrap=True)
    for horizon in scores["horizon"].values:
        table.add_column(f"RMSE\n{horizon} h", justify="right", no_wrap=True)
        table.add_column("skill", justify="right", no_wrap=True)
    for pollutant in scores["pollutant"].values:
        for label in scores[stratum].values:
            here = scores.sel({"pollutant": pollutant, stratum: label})
            figures = [text for h in here["horizon"].values for text in _figures(here.sel(horizon=h))]
            table.add_row(VARIABLES[str(pollutant)].long_name, str(label), *figures)
        table.add_section()
    return table


def _figures(pair: xr.Dataset) -> tuple[str, str]:
    return (
        _number(float(pair["rmse"].sel(forecast=MODEL)), ".2f"),
        _number(float(pair["skill"].min("reference")), "+.3f"),
    )


def _row(pair: xr.Dataset) -> list[str]:
    name = VARIABLES[str(pair["pollutant"].values)].long_name
    rmse = pair["rmse"]
    lowest = float(rmse.min())
    return [
        name,
        f"{int(pair['horizon'])} h",
        *(_marked(float(rmse.sel(forecast=name)), lowest) for name in pair["forecast"].values),
        *(_number(float(pair["skill"].sel(reference=name)), "+.3f") for name in pair["reference"].values),
        _number(float(pair["acc"].sel(forecast=MODEL)), "+.2f"),
        _number(float(pair["mae"].sel(forecast=MODEL)), ".2f"),
        _number(float(pair["bias"].sel(forecast=MODEL)), "+.2f"),
    ]


def _number(value: float, form: str) -> str:
    return "-" if value != value else format(value, form)


def _marked(value: float, lowest: float) -> str:
    text = _number(value, ".2f")
    return f"[bold green]{text}*[/]" if value == lowest else f"{text} "


def summary(scores: xr.Dataset) -> str:
    """One sentence: in how many pollutant-horizon pairs the model beats what it has to beat."""
    wins = count_wins(scores)
    over = ", ".join(f"{name} in {count}" for name, count in wins.over.items())
    unscored = scores["count"].size - wins.pairs
    without = f"; {unscored} more have no data" if unscored else ""
    return (
        f"Of {wins.pairs} pollutant-horizon pairs the model has a lower RMSE than {over}, "
        f"and than {'both' if len(wins.over) == 2 else 'all'} in {wins.over_all}{without}."
    )
