"""`report.html`: one self-contained page about a run. Gathers the parts and fills the template.

The template escapes all that it is given; only this package's own style sheet and script pass as they are.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from aqtopo.checkpoint import LoadedRun, load_run
from aqtopo.checkpoint.files import write_durably
from aqtopo.config import RunConfig
from aqtopo.data.samples import sample_table
from aqtopo.data.store import Store
from aqtopo.evaluation.cases import REFERENCES
from aqtopo.evaluation.report.alphas import alpha_curve, alpha_sentence, preference_rows, read_alphas
from aqtopo.evaluation.report.attention import look
from aqtopo.evaluation.report.breakdown import break_down
from aqtopo.evaluation.report.canvas import Canvas
from aqtopo.evaluation.report.case import Case, load_case
from aqtopo.evaluation.report.curves import loss_curve, lr_curve
from aqtopo.evaluation.report.days import alarms, no_alarms, sharpness
from aqtopo.evaluation.report.history import History, read_history
from aqtopo.evaluation.report.panels import Pollutant, draw_pollutants, spoken_time
from aqtopo.evaluation.report.places import Place
from aqtopo.evaluation.report.scoreboard import Scoreboard, score_board
from aqtopo.evaluation.report.stations import SKILL_SCALE, StationPollutant, station_scores
from aqtopo.evaluation.report.terrain import CONTOUR_LEVELS_M, draw_terrain
from aqtopo.evaluation.report.wind import draw_wind
from aqtopo.evaluation.score_file import read_score_file, scores_from_file
from aqtopo.evaluation.score_record import Scores
from aqtopo.evaluation.table import summary
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_file import RunFile, read_run_file

REPORT_FILE = "report.html"

_SEEN = {
    "test": "which neither training nor the choice of weights has seen",
    "validation": "by which the weights were chosen, so they flatter the model",
}
"""What scores of a split are worth."""


@dataclass(frozen=True)
class Split:
    """One part of the data: its years, usable start times and samples."""

    name: str
    years: str
    times: int
    samples: int


def write_report(run_dir: Path, init: np.datetime64 | None = None, places: Sequence[Place] = ()) -> Path:
    """Write a run's report page.

    Args:
        run_dir: the run directory, trained and evaluated.
        init: initial time of the maps, UTC; None for the most polluted start of the test period.
        places: further places whose attention is shown.

    Returns:
        Where the page is: `report.html` in the run directory.

    Raises:
        ValueError: the run lacks what the page shows (the message names the command that makes it), or `init`
            cannot be forecast from and verified, or a place is not on the grid.
    """
    scores = read_score_file(run_dir)
    history = read_history(run_dir / METRICS_FILE)
    run = load_run(run_dir, scores.tag)
    facts = read_run_file(run_dir)
    html = render(run, scores, history, load_case(run, init), facts, places)
    page = run_dir / REPORT_FILE
    write_durably(page, html)
    return page


def render(
    run: LoadedRun,
    content: Scores,
    history: History,
    case: Case,
    facts: RunFile,
    places: Sequence[Place] = (),
) -> str:
    """The page as HTML text.

    Args:
        run: the trained run whose scores and maps are shown.
        content: what `aqtopo evaluate` found, from `scores.json`.
        history: what happened in training.
        case: the forecast on the maps.
        facts: what `run.json` says of machine and versions.
        places: further places whose attention is shown.
    """
    store, canvas = run.store, Canvas(run.store.lat, run.store.lon)
    scores = scores_from_file(content)
    board = score_board(scores)
    pollutants, gazes = draw_pollutants(case, canvas), look(run, case, canvas, places)
    stations = station_scores(run.run_dir, canvas)
    parts = {
        "config": run.config,
        "source": store.source,
        "simulated": store.simulated,
        "board": board,
        "summary": summary(scores),
        "scored_on": f"the {content.split} period {_listed(content.years)}",
        "seen": _SEEN[content.split],
        "starts": _starts(content),
        "numbers": _numbers(run, board, history),
        "canvas": canvas,
        "terrain": draw_terrain(canvas, store.static["elevation"], store.static["mask"]),
        "wind": draw_wind(canvas, case.wind),
        "contour_levels": _listed(f"{level:,.0f}" for level in CONTOUR_LEVELS_M),
        "init_time": spoken_time(case.init_time),
        "reason": case.reason,
        "pollutants": pollutants,
        "pollutant_names": _labels(pollutants),
        "gazes": gazes,
        "place_names": list(enumerate((gaze.name for gaze in gazes.gazes), 1)) if gazes else [],
        "stations": stations,
        "station_pollutants": _labels(stations.pollutants) if stations else [],
        "skill_scale": SKILL_SCALE,
        "breakdowns": break_down(content.strata),
        "references": REFERENCES,
        "alarms": alarms(content.exceedances),
        "no_alarms": no_alarms(content.exceedances),
        "sharpness": sharpness(content.spectra),
        "version": importlib.metadata.version("aqtopo"),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return template("page.html.jinja").render(parts | _of_learning(run, history) | _of_setup(run, facts))


def _of_learning(run: LoadedRun, history: History) -> dict[str, Any]:
    """What the section on learning shows."""
    alphas = read_alphas(run.run_dir, run.config, history)
    return {
        "loss": loss_curve(history),
        "lr": lr_curve(history),
        "alpha": None if alphas is None else alpha_curve(alphas),
        "alpha_says": "" if alphas is None else alpha_sentence(alphas),
        "preferences": preference_rows(history),
        "happenings": history.happenings,
        "learning": _learning(history),
    }


def _of_setup(run: LoadedRun, facts: RunFile) -> dict[str, Any]:
    """What the section on data and set-up shows; the configuration is the page's."""
    return {
        "splits": _splits(run.config, run.store),
        "sample_rule": _sample_rule(run.config),
        "facts": _run_facts(run, facts),
        "versions": [(name, version or "not installed") for name, version in facts.versions.items()],
    }


def template(name: str) -> jinja2.Template:
    """One of this package's templates, with style sheet and script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aqtopo.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("aqtopo.evaluation.report") / "templates"
    for name_here, file in (("style", "style.css"), ("script", "script.js")):
        environment.globals[name_here] = Markup(folder.joinpath(file).read_text(encoding="utf-8"))
    return environment.get_template(name)


def _labels(pollutants: Sequence[Pollutant | StationPollutant]) -> list[tuple[str, str]]:
    """Value and text of each choice."""
    return [(pollutant.name, pollutant.label) for pollutant in pollutants]


def _numbers(run: LoadedRun, board: Scoreboard, history: History) -> list[tuple[str, str]]:
    """What a reader wants to know at first sight."""
    best = history.best
    first = board.rows[0]
    return [
        (f"{first.label} skill at {board.horizons_h[0]} h", first.cells[0].percent),
        ("best validation loss", "none" if best is None else f"{best.val_loss:.4f}"),
        ("steps trained", f"{history.steps[-1].step:,}"),
        ("parameters", f"{sum(p.numel() for p in run.model.parameters()) / 1e6:.2f} million"),
        ("grid", " × ".join(str(cells) for cells in run.config.data.grid)),
    ]


def _starts(content: Scores) -> str:
    """How many forecasts the scores are made of."""
    first, last = (spoken_time(np.datetime64(time)) for time in (content.first_init, content.last_init))
    return f"{content.initialisations:,} forecasts, started from {first} to {last}."


def _learning(history: History) -> str:
    last, best = history.steps[-1], history.best
    text = f"{last.step:,} steps in {last.epoch + 1} epoch{'s' if last.epoch else ''}"
    if history.starts > 1:
        text += f", started {history.starts} times"
    rates = [step.samples_per_s for step in history.steps if step.samples_per_s is not None]
    if rates:
        text += f", {np.median(rates):,.1f} samples a second (median)"
    if best is None:
        return f"{text}. The run was not validated."
    return f"{text}. The lowest validation loss, {best.val_loss:.4f}, came after step {best.step:,}."


def _splits(config: RunConfig, store: Store) -> list[Split]:
    years = {
        "train": config.data.train_years,
        "validation": config.data.validation_years,
        "test": config.data.test_years,
    }
    tables = {name: sample_table(config, store.times, name) for name in years}
    return [Split(name, _listed(years[name]), len(table.times), len(table)) for name, table in tables.items()]


def _sample_rule(config: RunConfig) -> str:
    horizons = _listed(config.data.horizons)
    if config.model.lead_time == "encoder":
        return (
            f"A training sample is a pair of a start time and one horizon ({horizons} h). "
            "Validation and test take each time with all its horizons."
        )
    return f"A sample is a start time with all its horizons ({horizons} h)."


def _run_facts(run: LoadedRun, facts: RunFile) -> list[tuple[str, str]]:
    names = {
        "commit": "commit",
        "world_size": "processes",
        "launcher": "launcher",
        "device": "device",
        "host_cores": "cores of the host",
        "threads_per_rank": "threads a process",
        "platform": "platform",
        "python": "Python",
    }
    return [
        ("saved state", run.tag.name),
        ("configuration digest", run.config.digest[:16]),
        (
            "training started",
            f"{datetime.fromisoformat(facts.started).astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        ),
        *((label, str(fact)) for key, label in names.items() if (fact := getattr(facts, key)) is not None),
    ]


def _listed(items: Any) -> str:
    return ", ".join(str(item) for item in items)
