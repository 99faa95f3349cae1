"""Report page of a run. The template escapes all text except this package's style sheet and script."""

import importlib.metadata
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.tags import CHECKPOINTS
from aqtopo.config import RunConfig
from aqtopo.data.samples import sample_table
from aqtopo.data.store import Store
from aqtopo.evaluation.points import BASELINES
from aqtopo.evaluation.results import read_score_file, scores_from_record
from aqtopo.evaluation.score_record import ScoreRecord
from aqtopo.evaluation.tables import summary
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.report.attention import Place, draw_attention
from aqtopo.report.base_map import CONTOUR_LEVELS_M, Canvas, draw_base_map, draw_wind_arrows
from aqtopo.report.curves import alpha_curve, loss_curve, lr_curve
from aqtopo.report.forecast_maps import ForecastCase, PollutantMaps, draw_pollutant_maps, load_case
from aqtopo.report.history import (
    History,
    alpha_sentence,
    preference_rows,
    read_alphas,
    read_history,
)
from aqtopo.report.score_tables import (
    ScoreTable,
    breakdown_tables,
    exceedance_rows,
    make_score_table,
    no_exceedances,
    sharpness_rows,
)
from aqtopo.report.stations import SKILL_SCALE, StationPollutant, station_scores
from aqtopo.report.text import time_text
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_file import RunFile, read_run_file

REPORT_FILE = "report.html"

_SEEN = {
    "test": "which was not used for training or for choosing the weights",
    "validation": "which was used for choosing the weights, so the scores are optimistic",
}
"""Clause about the earlier use of a split."""


def write_report(run_dir: Path, init: np.datetime64 | None = None, places: Sequence[Place] = ()) -> Path:
    """Write a run's report page; return its path, `report.html` in the run directory.

    `init` is the initial time of the maps, UTC; None for the most polluted one of the test period. `places`
    are shown in the attention maps in addition to cities.

    Raises:
        ValueError: the run lacks an input of the page (the message names the command that makes it), the
            store lacks the fields or the truth for `init`, or a place is not on the grid.
    """
    content = read_score_file(run_dir)
    history = read_history(run_dir / METRICS_FILE)
    run, facts = _scored_run(run_dir, content.tag), read_run_file(run_dir)
    html = _render(run, content, history, load_case(run, init), facts, places)
    page = run_dir / REPORT_FILE
    write_durably(page, html)
    return page


def _scored_run(run_dir: Path, tag: str) -> LoadedRun:
    """Load the state that was scored."""
    try:
        return load_run(run_dir, tag)
    except ValueError as error:
        if (run_dir / CHECKPOINTS / tag).exists():
            raise
        raise ValueError(
            f"{run_dir} has scores of the state {tag}, which its training has removed since. Score it again "
            f"with `aqtopo evaluate {run_dir}`, and report before the training goes on."
        ) from error


def _render(
    run: LoadedRun,
    content: ScoreRecord,
    history: History,
    case: ForecastCase,
    facts: RunFile,
    places: Sequence[Place],
) -> str:
    store, canvas = run.store, Canvas(run.store.lat, run.store.lon)
    scores = scores_from_record(content)
    score_table = make_score_table(scores)
    pollutants, attention = draw_pollutant_maps(case, canvas), draw_attention(run, case, canvas, places)
    stations = station_scores(run.run_dir, canvas)
    alphas = read_alphas(run.run_dir, run.config, history)
    return template("page.html.jinja").render(
        config=run.config,
        source=store.source,
        simulated=store.simulated,
        score_table=score_table,
        summary=summary(scores),
        scored_on=f"the {content.split} period {_listed(content.years)}",
        seen=_SEEN[content.split],
        weighted_by_area=content.weighting.startswith("area"),
        init_times=_init_times(content),
        numbers=_numbers(run, score_table, history),
        canvas=canvas,
        base_map=draw_base_map(canvas, store.static["elevation"], store.static["mask"]),
        wind=draw_wind_arrows(canvas, case.wind),
        earlier_wind=_earlier_wind(run.config),
        contour_levels=_listed(f"{level:,.0f}" for level in CONTOUR_LEVELS_M),
        init_time=time_text(case.init_time),
        reason=case.reason,
        pollutants=pollutants,
        pollutant_names=_labels(pollutants),
        attention=attention,
        place_names=list(enumerate((shown.name for shown in attention.places), 1)) if attention else [],
        stations=stations,
        station_pollutants=_labels(stations.pollutants) if stations else [],
        skill_scale=SKILL_SCALE,
        breakdowns=breakdown_tables(content.strata, content.described),
        baselines=BASELINES,
        exceedances=exceedance_rows(content.exceedances, content.described),
        no_exceedances=no_exceedances(content.exceedances),
        sharpness=sharpness_rows(content.spectra, content.described),
        loss=loss_curve(history),
        lr=lr_curve(history),
        alpha=None if alphas is None else alpha_curve(alphas),
        alpha_says="" if alphas is None else alpha_sentence(alphas),
        preferences=preference_rows(history),
        events=history.events,
        learning=_learning(history),
        splits=_splits(run.config, store),
        sample_rule=_sample_rule(run.config),
        facts=_run_facts(run, facts),
        versions=[(name, version or "not installed") for name, version in facts.versions.items()],
        version=importlib.metadata.version("aqtopo"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def template(name: str) -> jinja2.Template:
    """Load one of this package's templates, with style sheet and script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aqtopo.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("aqtopo.report") / "templates"
    for name_here, file in (("style", "style.css"), ("script", "script.js")):
        environment.globals[name_here] = Markup(folder.joinpath(file).read_text(encoding="utf-8"))
    return environment.get_template(name)


def _labels(pollutants: Sequence[PollutantMaps | StationPollutant]) -> list[tuple[str, str]]:
    """Return value and label of each choice."""
    return [(pollutant.name, pollutant.label) for pollutant in pollutants]


def _numbers(run: LoadedRun, score_table: ScoreTable, history: History) -> list[tuple[str, str]]:
    """Return the key figures of the header."""
    best = history.best
    first = score_table.rows[0]
    return [
        (f"{first.label} skill at {score_table.horizons_h[0]} h", first.cells[0].percent),
        ("best validation loss", "none" if best is None else f"{best.val_loss:.4f}"),
        ("steps trained", f"{history.steps[-1].step:,}"),
        ("parameters", f"{sum(p.numel() for p in run.model.parameters()) / 1e6:.2f} million"),
        ("grid", " × ".join(str(cells) for cells in run.config.data.grid)),
    ]


def _init_times(content: ScoreRecord) -> str:
    """Return the number and range of the scored forecasts as text."""
    first, last = (time_text(np.datetime64(time)) for time in (content.first_init, content.last_init))
    return f"{content.initialisations:,} forecasts, initial times from {first} to {last}."


def _learning(history: History) -> str:
    last, best = history.steps[-1], history.best
    text = f"{last.step:,} steps in {last.epoch + 1} epoch{'s' if last.epoch else ''}"
    if history.starts > 1:
        text += f", started {history.starts} times"
    rates = [step.samples_per_s for step in history.steps if step.samples_per_s is not None]
    if rates:
        text += f", {np.median(rates):,.1f} samples per second (median)"
    if best is None:
        return f"{text}. The run has no validation."
    return f"{text}. The lowest validation loss, {best.val_loss:.4f}, came after step {best.step:,}."


def _splits(config: RunConfig, store: Store) -> list[tuple[str, str, int, int]]:
    """Return name, years, usable initial times and samples of each split."""
    years = {
        "train": config.data.train_years,
        "validation": config.data.validation_years,
        "test": config.data.test_years,
    }
    tables = {name: sample_table(config, store.times, name) for name in years}
    return [(name, _listed(years[name]), len(table.times), len(table)) for name, table in tables.items()]


def _sample_rule(config: RunConfig) -> str:
    horizons = _listed(config.data.horizons)
    if config.model.lead_time == "encoder":
        return (
            f"A training sample is a pair of an initial time and one horizon ({horizons} h). "
            "Validation and test take each time with all its horizons."
        )
    return f"A sample is an initial time with all its horizons ({horizons} h)."


def _run_facts(run: LoadedRun, facts: RunFile) -> list[tuple[str, str]]:
    names = {
        "commit": "commit",
        "world_size": "processes",
        "launcher": "launcher",
        "device": "device",
        "host_cores": "cores of the host",
        "threads_per_rank": "threads per process",
        "platform": "platform",
        "python": "Python",
    }
    return [
        ("saved state", run.tag_name),
        ("inputs", _inputs(run.config)),
        ("configuration digest", run.config.digest[:16]),
        (
            "training started",
            f"{datetime.fromisoformat(facts.started).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        ),
        *((label, str(fact)) for key, label in names.items() if (fact := getattr(facts, key)) is not None),
    ]


def _inputs(config: RunConfig) -> str:
    """Describe the model's inputs."""
    data = config.data
    parts = [f"{len(data.variables)} variables"]
    if data.forcings:
        parts.append(", ".join(data.forcings))
    if data.history:
        names = dict.fromkeys(name for name, _ in data.history)
        parts.append(f"{len(names)} of the variables {_listed(data.history_hours)} h before")
    if data.at_horizons:
        encoder = config.model.lead_time == "encoder"
        when = "the horizon's own valid time" if encoder else "the valid times of all horizons"
        parts.append(f"{_listed(data.at_horizons)} at {when}")
    return "; ".join(parts)


def _earlier_wind(config: RunConfig) -> str:
    hours = dict.fromkeys(hours for name, hours in config.data.history if name in ("u", "v"))
    return f" and {_listed(hours)} h before" if hours else ""


def _listed(items: Any) -> str:
    return ", ".join(str(item) for item in items)
