"""Scores for people: a table for the terminal, and one sentence that says who won."""

import rich.box
import xarray as xr
from rich.table import Table

from aqtopo.evaluation.cases import MODEL
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
    forecasts = "1 forecast" if head["initialisations"] == 1 else f"{head['initialisations']:,} forecasts"
    units = ", ".join(dict.fromkeys(scores["units"].values.tolist()))
    table = Table(
        title=f"{head['run']} ({head['tag']}) on {head['split']} {', '.join(map(str, head['years']))}: "
        f"{forecasts}",
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


def _row(pair: xr.Dataset) -> list[str]:
    name = VARIABLES[str(pair["pollutant"].values)].long_name
    rmse = pair["rmse"]
    lowest = float(rmse.min())
    return [
        name,
        f"{int(pair['horizon'])} h",
        *(_marked(float(rmse.sel(forecast=name)), lowest) for name in pair["forecast"].values),
        *(number_text(float(pair["skill"].sel(reference=name)), "+.3f") for name in pair["reference"].values),
        number_text(float(pair["acc"].sel(forecast=MODEL)), "+.2f"),
        number_text(float(pair["mae"].sel(forecast=MODEL)), ".2f"),
        number_text(float(pair["bias"].sel(forecast=MODEL)), "+.2f"),
    ]


def number_text(value: float, form: str) -> str:
    """A number in a cell of a table, a dash where there is none."""
    return "-" if value != value else format(value, form)


def _marked(value: float, lowest: float) -> str:
    text = number_text(value, ".2f")
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
