"""`report.html` of an ablation: which differences are shown, and how every variant learnt."""

import importlib.metadata
import json
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from aqtopo.checkpoint.files import write_durably
from aqtopo.evaluation.ablation_file import RUNS, Results, numbered, read_results
from aqtopo.evaluation.report.comparison import Contrast, compared, overview, trained
from aqtopo.evaluation.report.curves import (
    CURVE_STYLE,
    GROUP_COLOURS,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    Curve,
    cycled,
    log_axis,
    thinned,
)
from aqtopo.evaluation.report.history import History, read_history
from aqtopo.evaluation.report.images import svg_uri
from aqtopo.evaluation.report.page import REPORT_FILE, template
from aqtopo.evaluation.report.scoreboard import capitalised
from aqtopo.run_directory.log_file import METRICS_FILE

# Six colours with the first, six more with the second.
_LINE_STYLES = ("-",) * 6 + ("--",) * 6

_TITLE_CHARACTERS = 36
"""A line of a panel's title, so that it ends before the next panel's begins."""


def write_ablation_report(folder: Path) -> Path:
    """Write an ablation's report page.

    Args:
        folder: what `aqtopo ablate` wrote, finished.

    Returns:
        Where the page is: `report.html` in the folder.

    Raises:
        ValueError: results or a training's log are missing or damaged.
    """
    content = read_results(folder)
    html = _render(content, read_histories(folder, content), not_compared(folder, content))
    page = folder / REPORT_FILE
    write_durably(page, html)
    return page


def not_compared(folder: Path, content: Results) -> list[str]:
    """The trainings that the folder holds or plans and the results do not, by variant's folder and seed.

    Raises:
        ValueError: a training's configuration is damaged.
    """
    compared_here = {(one.folder, f"seed{seed}") for one in content.variants for seed in content.seeds}
    others = [place for place in numbered(folder) if place not in compared_here]
    return [f"{variant}, {name.replace('seed', 'seed ')}" for variant, name in others]


def read_histories(folder: Path, content: Results) -> dict[str, list[History]]:
    """What happened in the trainings that were compared: by variant, one for every seed, as in the table.

    The folder may hold others, of an ablation that grew and was not finished; and it may lack some.
    """
    found: dict[str, list[History]] = {}
    for one in content.variants:
        paths = [folder / RUNS / one.folder / f"seed{seed}" / METRICS_FILE for seed in content.seeds]
        if histories := [read_history(path) for path in paths if path.is_file()]:
            found[one.variant] = histories
    return found


def curves_side_by_side(histories: dict[str, list[History]]) -> Curve:
    """Training and validation loss of every variant, a panel each on the same axes, a line a seed."""
    columns = min(3, len(histories))
    rows = -(-len(histories) // columns)
    with rc_context(CURVE_STYLE):
        figure = Figure(figsize=(3.7 * columns, 2.7 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, seeds) in zip(panels, histories.items(), strict=False):
            for history in seeds:
                steps, losses = thinned(
                    np.array([float(step.step) for step in history.steps]),
                    np.array([step.train_loss for step in history.steps]),
                )
                axes.plot(steps, losses, color=TRAIN_COLOUR, linewidth=0.6, alpha=0.6)
                validations = history.validations
                axes.plot(
                    [validation.step for validation in validations],
                    [validation.val_loss for validation in validations],
                    color=VALIDATION_COLOUR,
                    linewidth=1.6,
                    marker="o",
                    markersize=3,
                )
            axes.set_title(textwrap.fill(name, _TITLE_CHARACTERS), fontsize=9)
            log_axis(axes)
        for axes in panels[len(histories) :]:
            axes.set_axis_off()
        for axes in panels[: len(histories)][-columns:]:  # those with none, or an empty one, below
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("step (optimizer update)", fontsize=10)
        figure.supylabel("loss", fontsize=10)
        return Curve(svg_uri(figure), _curves_alt(histories))


def validation_together(histories: dict[str, list[History]]) -> Curve | None:
    """Validation loss of all variants on the same axes, mean over the seeds; None without a validation."""
    means = {name: mean for name, seeds in histories.items() if (mean := _mean_validation(seeds))}
    if not means:
        return None
    with rc_context(CURVE_STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        axes = figure.subplots()
        # Thinner from one to the next, so that lines which coincide are all seen.
        looks = zip(
            cycled(GROUP_COLOURS, len(means)),
            cycled(_LINE_STYLES, len(means)),
            np.linspace(4.0, 1.2, len(means)),
            strict=True,
        )
        for (name, mean), (colour, style, width) in zip(means.items(), looks, strict=True):
            steps, losses = list(mean), list(mean.values())
            axes.plot(steps, losses, color=colour, linestyle=style, linewidth=width, label=name)
        # The first losses are many times the last ones, between which the differences are.
        late = [loss for mean in means.values() for loss in list(mean.values())[len(mean) // 4 :]]
        axes.set_ylim(0.98 * min(late), 1.02 * max(late))
        axes.set_xlabel("step (optimizer update)")
        axes.set_ylabel("validation loss")
        figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
        last = "; ".join(f"{name} {list(mean.values())[-1]:.4f}" for name, mean in means.items())
        return Curve(
            svg_uri(figure), f"Validation loss over the steps, mean over the seeds. At the end: {last}."
        )


def _mean_validation(seeds: list[History]) -> dict[int, float]:
    """Mean loss at the steps at which every seed was validated."""
    by_seed = [{each.step: each.val_loss for each in history.validations} for history in seeds]
    common = sorted(set.intersection(*(set(losses) for losses in by_seed)))
    return {step: float(np.mean([losses[step] for losses in by_seed])) for step in common}


def _curves_alt(histories: dict[str, list[History]]) -> str:
    lowest = (
        f"{name} {', '.join(f'{history.best.val_loss:.4f}' for history in seeds if history.best)}"
        for name, seeds in histories.items()
    )
    return f"Losses over the steps, a panel a variant. Lowest validation loss by seed: {'; '.join(lowest)}."


def _render(content: Results, histories: dict[str, list[History]], others: Sequence[str]) -> str:
    contrasts = compared(content)
    facts = [
        ("configuration digest", content.config_digest[:16]),
        ("data", content.store),
        ("commit", content.commit or "not known"),
        ("seeds", ", ".join(str(seed) for seed in content.seeds)),
        ("finished", content.created[:16].replace("T", " ") + " UTC"),
        ("platform", content.machine.platform),
        ("cores", "not known" if content.machine.cores is None else str(content.machine.cores)),
    ]
    return template("ablation.html.jinja").render(
        name=content.run,
        simulated=content.simulated,
        source=content.source,
        findings=_findings(contrasts),
        seeds=len(content.seeds),
        factors=[(path, ", ".join(map(_spelled, levels))) for path, levels in content.factors.items()],
        starts=capitalised(content.starts),
        variants=trained(content),
        others=others,
        contrasts=contrasts,
        overview=overview(content),
        together=validation_together(histories),
        curves=curves_side_by_side(histories) if histories else None,
        facts=facts,
        versions=[(package, version or "not installed") for package, version in content.versions.items()],
        version=importlib.metadata.version("aqtopo"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _spelled(level: object) -> str:
    """A level as one writes it in a configuration, but words without quotes."""
    return level if isinstance(level, str) else json.dumps(level)


def _findings(contrasts: Sequence[Contrast]) -> str:
    """The comparisons that show something on all pollutants and horizons together, or that none does."""
    shown = [
        f"{contrast.label}: {change.percent}, {change.verdict}"
        for contrast in contrasts
        for change in contrast.overall[:1]
        if change.verdict in ("better", "worse")
    ]
    if not shown:
        return "No difference is shown in the test RMSE of all pollutants and horizons together."
    return f"Shown in the test RMSE of all pollutants and horizons together: {'; '.join(shown)}."
