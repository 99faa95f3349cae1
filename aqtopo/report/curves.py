"""Learning curves: losses and learning rates over the steps of a run.

Figures are made without pyplot, so no state is left behind and no display is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from aqtopo.report.history import History, Step
from aqtopo.report.images import svg_uri

FloatArray = npt.NDArray[np.float64]

# Okabe and Ito's colours: told apart by readers with any kind of colour vision.
GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#333333")
TRAIN_COLOUR, VALIDATION_COLOUR, INK = "#7d95a8", "#0b4f7d", "#24323d"

# More points than this cannot be told apart on the page and only make it heavy.
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
    """A drawn figure: its data URI, and the same in words for those who cannot see it."""

    uri: str
    alt: str


def loss_curve(history: History) -> Curve:
    """Draw training and validation loss, the best validation marked."""
    with rc_context(CURVE_STYLE):
        figure, axes = new_figure("loss (normalised units squared)")
        steps, losses = thinned(_step_numbers(history.steps), np.array([s.train_loss for s in history.steps]))
        axes.plot(steps, losses, color=TRAIN_COLOUR, linewidth=0.9, label="training")
        if history.validations:
            axes.plot(
                [v.step for v in history.validations],
                [v.val_loss for v in history.validations],
                color=VALIDATION_COLOUR,
                linewidth=1.8,
                marker="o",
                markersize=4,
                label="validation",
            )
        _mark_best(axes, history)
        if losses.min() > 0:
            log_axis(axes)
        # Above the axes: a loss may be anywhere in them.
        figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=9.5)
        return Curve(svg_uri(figure), _loss_alt(history))


def lr_curve(history: History) -> Curve:
    """Draw each group's learning rate on a logarithmic axis."""
    groups = list(history.steps[-1].lrs)
    with rc_context(CURVE_STYLE):
        figure, axes = new_figure("learning rate")
        for group, colour in zip(groups, cycled(GROUP_COLOURS, len(groups)), strict=True):
            rates = np.array([step.lrs[group] for step in history.steps])
            axes.plot(_step_numbers(history.steps), rates, color=colour, linewidth=1.8, label=group)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 12)  # room for the legend above the highest curve
        axes.legend(frameon=False, ncols=2, loc="upper center")
        first, last = history.steps[0].lrs, history.steps[-1].lrs
        changes = "; ".join(f"{group} from {first[group]:.2e} to {last[group]:.2e}" for group in groups)
        return Curve(svg_uri(figure), f"Learning rate by group over the steps: {changes}.")


def thinned(steps: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Average neighbours until at most `MAX_POINTS` points are left.

    Args:
        steps: (S,) increasing.
        values: (S,).

    Returns:
        Mean step and mean value of each run of neighbours; the input itself where it is short enough.
    """
    if len(steps) <= MAX_POINTS:
        return steps, values
    pieces = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return (
        np.array([steps[piece].mean() for piece in pieces]),
        np.array([values[piece].mean() for piece in pieces]),
    )


def new_figure(ylabel: str) -> tuple[Figure, Axes]:
    """Axes over the steps, of the size and look that all curves of the page share."""
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("step (optimizer update)")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def log_axis(axes: Axes) -> None:
    """A logarithmic axis with plain numbers, also where it spans less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_best(axes: Axes, history: History) -> None:
    best = history.best
    if best is None:
        return
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


def _step_numbers(steps: Sequence[Step]) -> FloatArray:
    return np.array([step.step for step in steps], dtype=np.float64)


def cycled(colours: Sequence[str], n: int) -> list[str]:
    """As many colours as asked for, from the first on again where there are too few."""
    return [colours[index % len(colours)] for index in range(n)]
