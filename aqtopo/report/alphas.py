"""What became of alpha and of what heads prefer.

As training logged it; alpha also as the saved states have it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from safetensors import SafetensorError, safe_open

from aqtopo.checkpoint import list_tags
from aqtopo.checkpoint.retention import reading
from aqtopo.checkpoint.weights import WEIGHTS_FILE
from aqtopo.config import RunConfig
from aqtopo.model.attention import ALPHA
from aqtopo.report.curves import CURVE_STYLE, GROUP_COLOURS, Curve, cycled, new_figure
from aqtopo.report.history import History
from aqtopo.report.images import svg_uri

FloatArray = npt.NDArray[np.float64]

_MOST_MARKERS = 40


@dataclass(frozen=True)
class Alphas:
    """The barrier strengths of a run.

    Attributes:
        steps: (S,) steps after which it is known, the first being 0.
        by_block: for every block that has them, (S, n) strengths [km-1]; n is 1 where the heads share one.
    """

    steps: tuple[int, ...]
    by_block: dict[str, FloatArray]


def read_alphas(run_dir: Path, config: RunConfig, history: History) -> Alphas | None:
    """Alpha at the start and at every validation; None for a model without it.

    A run that did not log it has it in its saved states, which are few and, in bfloat16, rounded.

    Raises:
        ValueError: the weights of a state cannot be read.
    """
    points = {
        step: {name: np.array(values) for name, values in logged.items()}
        for step, logged in history.alphas.items()
    }
    if not points:  # of two states at one step the one saved later counts
        points = {tag.step: _read_state(tag.folder(run_dir)) for tag in list_tags(run_dir)}
    steps = sorted(points)
    if not steps or not points[steps[0]]:
        return None
    names = sorted(points[steps[0]])
    if steps[0] > 0:  # the start was not logged
        points[0] = {name: np.full_like(points[steps[0]][name], config.model.alpha) for name in names}
        steps = [0, *steps]
    by_block = {_spelled(name): np.stack([points[step][name] for step in steps]) for name in names}
    return Alphas(tuple(steps), by_block)


def _spelled(name: str) -> str:
    return name.removesuffix(ALPHA).replace("blocks.", "block ")


def _read_state(folder: Path) -> dict[str, FloatArray]:
    """The strengths of one saved state, without reading its other weights."""
    try:
        with reading(folder), safe_open(folder / WEIGHTS_FILE, framework="np") as weights:
            names = [name for name in weights.keys() if name.endswith(ALPHA)]  # noqa: SIM118
            return {name: weights.get_tensor(name).astype(np.float64) for name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot read alpha from {folder / WEIGHTS_FILE}: {error}. Remove that state, or try again if a "
            "running training has just removed it."
        ) from error


def alpha_curve(alphas: Alphas) -> Curve:
    """Draw every strength over the steps, a colour a block; dotted where it began."""
    with rc_context(CURVE_STYLE):
        figure, axes = new_figure("alpha (1/km)")
        colours = cycled(GROUP_COLOURS, len(alphas.by_block))
        marker = "o" if len(alphas.steps) <= _MOST_MARKERS else None
        for (block, values), colour in zip(alphas.by_block.items(), colours, strict=True):
            heads = values.shape[1]
            label = block if heads == 1 else f"{block}, {heads} heads"
            lines = axes.plot(alphas.steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4)
            lines[0].set_label(label)
            axes.axhline(values[0, 0], color=colour, linewidth=1.0, linestyle=":")
        axes.legend(frameon=False, loc="best")
        low, high = axes.get_ylim()
        least = 0.02 * max(abs(high), 1.0)  # or rounding errors would look like learning
        if high - low < least:
            middle = (low + high) / 2
            axes.set_ylim(middle - least / 2, middle + least / 2)
        return Curve(svg_uri(figure), f"Alpha over the steps: {alpha_sentence(alphas)}")


def alpha_sentence(alphas: Alphas) -> str:
    """From where to where alpha went, in words."""
    parts = []
    for block, values in alphas.by_block.items():
        last = values[-1]
        end = f"{last[0]:.3f}" if len(last) == 1 else f"{last.min():.3f} to {last.max():.3f} by head"
        parts.append(f"{block} from {values[0, 0]:.3f} to {end}")
    return f"{'; '.join(parts)} km\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ONE}, at step {alphas.steps[-1]:,}."


def preference_rows(history: History) -> list[tuple[str, str, str]]:
    """What the heads prefer, as logged: block and quantity, first and last values, a number a head."""
    if not history.preferences:
        return []
    logged = list(history.preferences.values())
    first, last = logged[0], logged[-1]
    return [(name.replace("blocks.", "block "), _by_head(first[name]), _by_head(last[name])) for name in last]


def _by_head(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
