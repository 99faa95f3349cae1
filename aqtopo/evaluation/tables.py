"""Score tables for the terminal."""

from collections.abc import Sequence

import rich.box
import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aqtopo.evaluation.evaluate import Evaluation
from aqtopo.evaluation.exceedances import NO_DAILY_MEANS
from aqtopo.evaluation.points import MODEL, WHOLE
from aqtopo.evaluation.scores import count_wins, squared_errors
from aqtopo.inference.card import scored_with
from aqtopo.variables import variables_from_json

TABLE_WIDTH = 120
"""Columns of text that suffice for the score table with the baselines, and for the other tables."""

_ANY_WIDTH = 10_000


def table_width(scores: xr.Dataset) -> int:
    """Return the columns of text of the score table, at least `TABLE_WIDTH`; another model adds a column."""
    return max(TABLE_WIDTH, Console(width=_ANY_WIDTH).measure(score_table(scores)).maximum)


def score_table(scores: xr.Dataset) -> Table:
    """Table of the RMSE of every forecast, the lowest marked, and the model's skill, ACC and bias."""
    attrs = scores.attrs
    forecasts = "1 forecast" if attrs["initialisations"] == 1 else f"{attrs['initialisations']:,} forecasts"
    units = escape(", ".join(dict.fromkeys(scores["units"].values.tolist())))
    table = _table(
        ("pollutant",),
        (
            "lead",
            *(f"RMSE\n{name}" for name in scores["forecast"].values),
            "skill vs\nbest reference",
            *(f"{measure}\n{MODEL}" for measure in ("ACC", "bias")),
        ),
        title=f"{attrs['run']} ({attrs['tag']}) on {attrs['split']} {', '.join(map(str, attrs['years']))}: "
        f"{forecasts}{scored_with(scores.attrs)}",
        caption=f"RMSE and bias in {units}; * lowest RMSE; skill = 1 - RMSE / RMSE of the best of the other "
        "forecasts, positive is better; ACC = correlation of anomalies from climatology",
    )
    table.padding, table.collapse_padding, table.pad_edge = (0, 1), True, False
    for pollutant in scores["pollutant"].values:
        for horizon in scores["horizon"].values:
            table.add_row(*_row(scores.sel(pollutant=pollutant, horizon=horizon)))
        table.add_section()
    return table


def _weather(scores: xr.Dataset) -> str:
    """Return the words for the weather to come that a run was given, to follow a title; empty without."""
    return f"; {scores.attrs['weather']}" if "weather" in scores.attrs else ""


def _table(texts: Sequence[str], numbers: Sequence[str], title: str, caption: str | None = None) -> Table:
    """Return an empty table with columns of text, then of right-aligned numbers."""
    table = Table(title=title, caption=caption, box=rich.box.SIMPLE_HEAD)
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(pair: xr.Dataset) -> list[str]:
    name = long_name(pair, pair["pollutant"].values)
    rmse = pair["rmse"]
    lowest = float(rmse.min())
    return [
        name,
        f"{int(pair['horizon'])} h",
        *(_marked(float(rmse.sel(forecast=name)), lowest) for name in pair["forecast"].values),
        _skill_vs_best(pair),
        number_text(float(pair["acc"].sel(forecast=MODEL)), "+.2f"),
        number_text(float(pair["bias"].sel(forecast=MODEL)), "+.2f"),
    ]


def long_name(scores: xr.Dataset, pollutant: object) -> str:
    """Return the name of a pollutant, from the descriptions among the attributes of its scores, as markup."""
    return escape(variables_from_json(scores.attrs.get("variables", ()))[str(pollutant)].long_name)


def number_text(value: float, form: str) -> str:
    """Format a number for a table; a dash for NaN."""
    return "-" if value != value else format(value, form)


def _skill_vs_best(pair: xr.Dataset) -> str:
    """Return the skill against the reference with the lowest RMSE, and its name."""
    # The lower the reference's RMSE, the lower the skill; NaN without data.
    known = pair["skill"].dropna("reference")
    best = known.sortby(known)
    return f"{float(best[0]):+.3f} {best['reference'].values[0]}" if best.size else "-"


def _marked(value: float, lowest: float) -> str:
    text = number_text(value, ".2f")
    return f"[bold green]{text}*[/]" if value == lowest else f"{text} "


def summary(scores: xr.Dataset) -> str:
    """Return a sentence with the number of pairs in which the model is better than the references."""
    wins = count_wins(scores)
    over = ", ".join(f"{name} in {count}" for name, count in wins.over.items())
    unscored = scores["count"].size - wins.pairs
    without = f"; {unscored} more have no data" if unscored else ""
    return (
        f"Of {wins.pairs} pollutant-horizon pairs the model has a lower RMSE than {over}, "
        f"and than all in {wins.over_all}{without}.{_squared_error_text(scores)}"
    )


def _squared_error_text(scores: xr.Dataset) -> str:
    errors = squared_errors(scores)
    if not errors:
        return ""
    own = errors.pop(MODEL)
    ratios = ", ".join(f"{own / error:.3f} of {name}" for name, error in errors.items())
    return f" Squared error over all, in standard deviations of the training years: {own:.4f}; {ratios}."


_NUMBERS = ("hits", "misses", "false_alarms")
_SHARES = ("pod", "far", "csi")

MAX_NAMED = 8
"""Longest list of stations in a message; `scores.zarr` lists all."""


def detail_table(done: Evaluation, name: str) -> Table | str:
    """Return the table of a stratum, of `exceedances` or of `spectra`; or the reason why there is none."""
    if name == "exceedances":
        return exceedance_table(done.exceedances)
    if name == "spectra":
        return spectra_table(done.spectra)
    return stratum_table(done, name)


def stratum_table(done: Evaluation, stratum: str) -> Table:
    """Table of the model's RMSE and skill against the best reference, by season, hour, area or station."""
    scores = done.strata[stratum]
    columns = [name for h in scores["horizon"].values for name in (f"RMSE\n{h} h", "skill")]
    given = _weather(scores) if stratum == "station" else scored_with(scores.attrs)
    title = f"RMSE of the model by {stratum}, and skill against the best reference{given}"
    table = _table(("pollutant", stratum), columns, title)
    # Most stations observe some of the pollutants.
    for pollutant in scores["pollutant"][scores["count"].any((stratum, "horizon"))].values:
        for label in scores[stratum].values:
            here = scores.sel({"pollutant": pollutant, stratum: label})
            rmse, skill = here["rmse"].sel(forecast=MODEL), here["skill"].min("reference")
            figures = []
            for horizon in here["horizon"].values:
                figures.append(number_text(float(rmse.sel(horizon=horizon)), ".2f"))
                figures.append(number_text(float(skill.sel(horizon=horizon)), "+.3f"))
            table.add_row(long_name(scores, pollutant), str(label), *figures)
        table.add_section()
    return table


def stations_left_out(done: Evaluation) -> str:
    """Return a sentence that lists the observations that are not scored; empty if all are."""
    facts = done.tables["stations"].attrs
    named = [f"{name} (beyond the grid)" for name in facts["stations_outside_the_grid"]]
    named += [f"{name} (beside a masked cell)" for name in facts["stations_beside_masked_cells"]]
    named += [f"{name} (not forecast)" for name in facts["pollutants_ignored"]]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f"Observations left out: {', '.join(named[:MAX_NAMED])}{more}." if named else ""


def kept_values(scores: xr.Dataset) -> str:
    """Return a sentence with the number of values outside the valid range, by source; empty if none is."""
    counts = scores.attrs.get("kept_values", {})
    named = [
        f"{', '.join(f'{n:,} of {name}' for name, n in by_name.items())} in {source}"
        for source, by_name in counts.items()
        if by_name
    ]
    return f"Values outside the valid range, which are kept: {'; '.join(named)}." if named else ""


def exceedance_table(exceedances: xr.Dataset) -> Table | str:
    """Table of every forecast's hits and false alarms over the whole domain; or the reason for none."""
    whole = exceedances.sel(area=WHOLE)
    if not whole.sizes["pollutant"]:
        return "No pollutant of this run has a limit for 24-hour means."
    if not whole[[*_NUMBERS, "correct_negatives"]].to_array().any():
        return NO_DAILY_MEANS
    any_at_all = whole[list(_NUMBERS)].to_array().any(("variable", "forecast", "horizon"))
    quiet = ", ".join(long_name(whole, name) for name in whole["pollutant"][~any_at_all].values)
    table = _table(
        ("pollutant", "forecast"),
        ("limit", "lead", *(name.replace("_", " ") for name in _NUMBERS), *map(str.upper, _SHARES)),
        title="days and cells whose 24-hour mean exceeds the limit (GB 3095-2012, grade II)"
        + _weather(whole),
        caption="POD = hits / (hits + misses); FAR = false alarms / (hits + false alarms); "
        "CSI = hits / (hits + misses + false alarms)"
        + (f"; no event and no alarm: {quiet}" if quiet else ""),
    )
    for pollutant in whole["pollutant"][any_at_all].values:
        for horizon in whole["horizon"].values:
            pair = whole.sel(pollutant=pollutant, horizon=horizon)
            for name in whole["forecast"].values:
                table.add_row(*_exceedance_row(pair.sel(forecast=name)))
        table.add_section()
    return table


def _exceedance_row(case: xr.Dataset) -> list[str]:
    return [
        long_name(case, case["pollutant"].values),
        str(case["forecast"].values),
        f"{float(case['limit']):.0f}",
        f"{int(case['horizon'])} h",
        *(str(int(case[name])) for name in _NUMBERS),
        *(number_text(float(case[name]), ".2f") for name in _SHARES),
    ]


def spectra_table(spectra: xr.Dataset) -> Table:
    """Table of the shortest resolved wavelength and of the relative power at the shortest wavelengths."""
    model = spectra[["resolved_km", "short_waves"]].sel(forecast=MODEL)
    table = _table(
        ("pollutant",),
        [name for horizon in model["horizon"].values for name in (f"km\n{horizon} h", "short")],
        title=f"smoothness: power of the model relative to the truth's{_weather(spectra)}",
        caption="km: the shortest wavelength down to which the model has at least half of the truth's power; "
        "short: its power over the shortest third of the wavelengths, divided by the truth's",
    )
    for pollutant in model["pollutant"].values:
        pairs = [model.sel(pollutant=pollutant, horizon=horizon) for horizon in model["horizon"].values]
        forms = (("resolved_km", ".0f"), ("short_waves", ".2f"))
        figures = [number_text(float(pair[name]), form) for pair in pairs for name, form in forms]
        table.add_row(long_name(spectra, pollutant), *figures)
    return table
