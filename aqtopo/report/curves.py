"""Figures over the steps: losses, learning rates and alpha.

They do not use pyplot, which needs global state.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from aqtopo.report.history import Alphas, History, alpha_sentence
from aqtopo.report.images import FloatArray, svg_uri
from aqtopo.run_directory.log_file import StepLine, ValidationLine

# Okabe and Ito's colours, for readers with any kind of colour vision.
GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#333333")
TRAIN_COLOUR, VALIDATION_COLOUR, INK = "#7d95a8", "#0b4f7d", "#24323d"

# More points are not visible on the page and increase its size.
MAX_POINTS = 600

CURVE_STYLE: Any = {
    "font.size": 11,
    "axes.edgecolor": "#9aa7b1",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e8ec",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Curve:
    """A figure: its data URI and its text alternative."""

    uri: str
    alt: str


def loss_curve(history: History) -> Curve:
    """Draw training and validation loss, the best validation marked."""
    with rc_context(CURVE_STYLE):
        figure, axes = new_figure("loss (normalised units squared)")
        losses = _plot_losses(axes, history, {"linewidth": 0.9}, {"linewidth": 1.8, "markersize": 4})
        if best := history.best:
            axes.plot(
                [best.step],
                [best.val_loss],
                linestyle="none",
                marker="*",
                markersize=15,
                color="#d55e00",
                markeredgecolor="white",
                zorder=5,
                label=f"best: {best.val_loss:.4g} at step {best.step}",
            )
        if losses.min() > 0:
            log_axis(axes)
        # Above the axes, where no curve is.
        figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=9.5)
        return Curve(svg_uri(figure), _loss_alt(history))


def _plot_losses(axes: Axes, history: History, train: Any, validation: Any) -> FloatArray:
    """Plot the losses over the steps in these styles; return the plotted training losses."""
    steps, losses = thinned(_column(history.steps, "step"), _column(history.steps, "train_loss"))
    axes.plot(steps, losses, color=TRAIN_COLOUR, label="training", **train)
    if history.validations:
        steps, val_losses = (_column(history.validations, name) for name in ("step", "val_loss"))
        axes.plot(steps, val_losses, color=VALIDATION_COLOUR, marker="o", label="validation", **validation)
    return losses


def _column(lines: Sequence[StepLine] | Sequence[ValidationLine], name: str) -> FloatArray:
    return np.array([getattr(line, name) for line in lines], dtype=np.float64)


def lr_curve(history: History) -> Curve:
    """Draw each group's learning rate on a logarithmic axis."""
    groups = list(history.steps[-1].lr)
    with rc_context(CURVE_STYLE):
        figure, axes = new_figure("learning rate")
        for group, colour in zip(groups, cycle(GROUP_COLOURS), strict=False):
            rates = np.array([step.lr[group] for step in history.steps])
            axes.plot(_column(history.steps, "step"), rates, color=colour, linewidth=1.8, label=group)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 12)  # room for the legend above the highest curve
        axes.legend(frameon=False, ncols=2, loc="upper center")
        first, last = history.steps[0].lr, history.steps[-1].lr
        changes = "; ".join(f"{group} from {first[group]:.2e} to {last[group]:.2e}" for group in groups)
        return Curve(svg_uri(figure), f"Learning rate by group over the steps: {changes}.")


def thinned(steps: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Average runs of neighbouring steps (S,) and values (S,) until at most `MAX_POINTS` remain."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    pieces = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return (
        np.array([steps[piece].mean() for piece in pieces]),
        np.array([values[piece].mean() for piece in pieces]),
    )


def new_figure(ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure with axes over the steps, in the common size and style."""
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("step (optimizer update)")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def log_axis(axes: Axes) -> None:
    """Set a logarithmic axis with plain numbers, also below one decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _loss_alt(history: History) -> str:
    first, last = history.steps[0], history.steps[-1]
    text = (
        f"Loss over the steps. Training: {first.train_loss:.4g} at step {first.step}, "
        f"{last.train_loss:.4g} at step {last.step}."
    )
    if history.best is None:
        return f"{text} No validation yet."
    return (
        f"{text} Validation: {len(history.validations)} times, "
        f"lowest {history.best.val_loss:.4g} at step {history.best.step}."
    )


def alpha_curve(alphas: Alphas) -> Curve:
    """Draw alpha over the steps, a colour per block; dotted: initial value."""
    with rc_context(CURVE_STYLE):
        figure, axes = new_figure("alpha (1/km)")
        marker = "o" if len(alphas.steps) <= _MAX_MARKERS else None
        for (block, values), colour in zip(alphas.by_block.items(), cycle(GROUP_COLOURS), strict=False):
            heads = values.shape[1]
            label = block if heads == 1 else f"{block}, {heads} heads"
            lines = axes.plot(alphas.steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4)
            lines[0].set_label(label)
            axes.axhline(values[0, 0], color=colour, linewidth=1.0, linestyle=":")
        axes.legend(frameon=False, loc="best")
        low, high = axes.get_ylim()
        least = 0.02 * max(abs(high), 1.0)  # so that rounding errors do not look like learning
        if high - low < least:
            middle = (low + high) / 2
            axes.set_ylim(middle - least / 2, middle + least / 2)
        return Curve(svg_uri(figure), f"Alpha over the steps: {alpha_sentence(alphas)}")


_MAX_MARKERS = 40


def variant_curves(histories: dict[str, list[History]]) -> Curve:
    """Draw training and validation loss, one panel per variant on common axes, one line per seed."""
    columns = min(3, len(histories))
    rows = -(-len(histories) // columns)
    with rc_context(CURVE_STYLE):
        figure = Figure(figsize=(3.7 * columns, 2.7 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, seeds) in zip(panels, histories.items(), strict=False):
            for history in seeds:
                train, validation = {"linewidth": 0.6, "alpha": 0.6}, {"linewidth": 1.6, "markersize": 3}
                _plot_losses(axes, history, train, validation)
            axes.set_title(textwrap.fill(name, _TITLE_CHARACTERS), fontsize=9)
            log_axis(axes)
        for axes in panels[len(histories) :]:
            axes.set_axis_off()
        for axes in panels[: len(histories)][-columns:]:  # lowest panel of each column
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("step (optimizer update)", fontsize=10)
        figure.supylabel("loss", fontsize=10)
        return Curve(svg_uri(figure), _curves_alt(histories))


def mean_validation_curve(histories: dict[str, list[History]]) -> Curve | None:
    """Draw the validation loss of all variants, mean over the seeds; None without a validation."""
    means = {name: mean for name, seeds in histories.items() if (mean := _mean_validation(seeds))}
    if not means:
        return None
    with rc_context(CURVE_STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        axes = figure.subplots()
        # Decreasing widths keep coinciding lines visible.
        looks = zip(
            cycle(GROUP_COLOURS), cycle(_LINE_STYLES), np.linspace(4.0, 1.2, len(means)), strict=False
        )
        for (name, mean), (colour, style, width) in zip(means.items(), looks, strict=True):
            steps, losses = list(mean), list(mean.values())
            axes.plot(steps, losses, color=colour, linestyle=style, linewidth=width, label=name)
        # The limits exclude the first losses, which are many times the last ones.
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
    """Return the mean loss at the steps at which every seed was validated."""
    by_seed = [{each.step: each.val_loss for each in history.validations} for history in seeds]
    common = sorted(set.intersection(*(set(losses) for losses in by_seed)))
    return {step: float(np.mean([losses[step] for losses in by_seed])) for step in common}


def _curves_alt(histories: dict[str, list[History]]) -> str:
    lowest = (
        f"{name} {', '.join(f'{history.best.val_loss:.4f}' for history in seeds if history.best)}"
        for name, seeds in histories.items()
    )
    return f"Losses over the steps by variant. Lowest validation loss by seed: {'; '.join(lowest)}."


# Six colours per style.
_LINE_STYLES = ("-",) * 6 + ("--",) * 6


_TITLE_CHARACTERS = 36
"""Longest line of a panel's title."""
