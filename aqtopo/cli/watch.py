"""`aqtopo watch`: show the state of a run."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import RunDir, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from aqtopo.run_directory.run_state import RunState

COLOURS = {"SUCCESS": "green", "FAILURE": "red", "UNDECIDED": "yellow"}


def watch(
    run_dir: RunDir,
    every: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds between updates.")] = 5.0,
    once: Annotated[
        bool, typer.Option("--once", help="Show the state once; always so without a terminal.")
    ] = False,
    success_below: Annotated[
        float, typer.Option(help="SUCCESS if the first losses after a resume are below this.")
    ] = 1.0,
    failure_above: Annotated[
        float, typer.Option(help="FAILURE (exit code 1) if the first losses after a resume are above this.")
    ] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Show the state once, as JSON only.")] = False,
) -> None:
    """Show state, losses, learning rates, pace, resume and last error of a run until it ends."""
    from rich.console import Console
    from rich.live import Live

    from aqtopo.checkpoint.tags import last_tag
    from aqtopo.cli.terminal import new_console
    from aqtopo.run_directory.run_state import read_run_state

    if failure_above < success_below:
        raise ValueError(
            f"--failure-above {failure_above} is below --success-below {success_below}. Swap them."
        )

    def read() -> tuple["RunState", str | None, str | None]:
        state = read_run_state(run_dir)
        tag = last_tag(run_dir)
        return state, None if tag is None else tag.name, state.verdict(success_below, failure_above)

    state, saved, verdict = read()
    if as_json:
        print_json(asdict(state) | {"saved": saved, "verdict": verdict})
    elif once or not sys.stdout.isatty():
        new_console().print(_table(run_dir, state, saved, verdict))
    else:
        screen = Console(file=sys.__stdout__)  # sys.stdout escapes what moves the cursor
        with Live(_table(run_dir, state, saved, verdict), console=screen, auto_refresh=False) as live:
            while not state.state.startswith("ended"):
                time.sleep(every)
                state, saved, verdict = read()
                live.update(_table(run_dir, state, saved, verdict), refresh=True)
    if verdict == "FAILURE":
        raise typer.Exit(1)


def _table(run_dir: Path, state: "RunState", saved: str | None, verdict: str | None) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from aqtopo.cli.terminal import escaped
    from aqtopo.text import duration_text

    rows = {
        "state": state.state,
        "step": f"{state.step:,} of {state.total_steps:,}, started {state.starts} time(s)",
        "saved": saved or "-",
        "train loss": _number(state.train_loss),
        "validation loss": f"{_number(state.val_loss)} (best {_number(state.best_val_loss)})",
        "learning rates": "  ".join(f"{group} {lr:.3e}" for group, lr in state.lrs.items()) or "-",
        "alpha [1/km]": "  ".join(_strengths(name, values) for name, values in state.alpha.items()) or "-",
        **{name: "  ".join(f"{value:.3g}" for value in values) for name, values in state.preferences.items()},
        "samples/s": _number(state.samples_per_s),
        "time left": "-" if state.left_s is None else duration_text(state.left_s),
        "resume": state.resume or "none",
        "last error": state.error or "none",
    }
    table = Table(title=Text(escaped(str(run_dir))), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        # Text: rich would read brackets in a str as markup.
        table.add_row(Text(escaped(name)), Text(escaped(value)))
    if state.loss_jump is not None:
        table.add_row("warning", Text(f"the loss has jumped: {state.loss_jump}", style="bold yellow"))
    if verdict is not None:
        loss = _number(state.resumed_loss)
        table.add_row("resumed", Text(f"{verdict}: first losses {loss}", style=f"bold {COLOURS[verdict]}"))
    return table


def _strengths(name: str, values: list[float]) -> str:
    """Format strengths as `blocks.0 2.013`, or as a range over the heads."""
    ends = sorted({f"{value:.3f}" for value in (min(values), max(values))})
    return f"{name.removesuffix('.attn.alpha')} {' to '.join(ends)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
