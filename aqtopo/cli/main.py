"""The `aqtopo` command: registers all commands and prints a user's error as one paragraph."""

import os
import sys
import textwrap
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated

import typer

from aqtopo.cli.ablate import ablate
from aqtopo.cli.checkpoint import app as checkpoint_app
from aqtopo.cli.config import app as config_app
from aqtopo.cli.data import app as data_app
from aqtopo.cli.doctor import doctor
from aqtopo.cli.evaluate import evaluate
from aqtopo.cli.export import export
from aqtopo.cli.fault_test import fault_test
from aqtopo.cli.forecast import forecast
from aqtopo.cli.options import YearsCommand
from aqtopo.cli.plan import plan
from aqtopo.cli.prepare import app as prepare_app
from aqtopo.cli.report import report
from aqtopo.cli.slurm import app as slurm_app
from aqtopo.cli.synth import synth
from aqtopo.cli.terminal import EscapedStream
from aqtopo.cli.train import train
from aqtopo.cli.watch import watch
from aqtopo.refusal import RefusedError, Retry, retry_after
from aqtopo.run_directory.batch_job import BatchJob

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3

SPIN_COUNT = "10000"
"""Times that a waiting OpenMP thread looks before it sleeps; `benchmarks.spinning` compares values."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(prepare_app, name="prepare")
app.add_typer(slurm_app, name="slurm")
app.command("synth", cls=YearsCommand)(synth)
for command in (plan, train, doctor, fault_test, watch, ablate, evaluate, forecast, export, report):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from aqtopo import __version__

        typer.echo(f"aqtopo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Terrain- and wind-aware air-quality transformers, trained with DeepSpeed ZeRO-2."""
    # The deepspeed launcher puts --local_rank=N before the arguments. The value is also in LOCAL_RANK.


def main() -> None:
    """Run the command line; errors that a user can correct are printed without a traceback."""
    # By default a waiting thread spins 300000 times, and its core does no other work. OpenMP reads the
    # variable when PyTorch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    out, err = EscapedStream(sys.stdout), EscapedStream(sys.stderr, progress=True)
    with redirect_stdout(out), redirect_stderr(err):
        _run()


def _run() -> None:
    try:
        app()
    except (ValueError, RefusedError, FloatingPointError, OSError) as error:
        if isinstance(error, ValueError) and not raised_by_us(error):
            raise  # a bug instead of bad input
        _print_error(str(error))
        BatchJob.from_environment().note_failure(retry_after(error), _code_of(error), str(error))
        sys.exit(_code_of(error))
    except SystemExit as end:
        if end.code == EXIT_BAD_INPUT:  # click has already printed the error
            BatchJob.from_environment().note_failure(
                Retry.NEVER, EXIT_BAD_INPUT, "the command line is invalid"
            )
        raise


def _code_of(error: Exception) -> int:
    if isinstance(error, ValueError):
        return EXIT_BAD_INPUT
    return EXIT_REFUSED if isinstance(error, RefusedError) else EXIT_FAILED


def raised_by_us(error: BaseException) -> bool:
    """Return True if aqtopo raised the error, and not a library that it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("aqtopo")


def _print_error(text: str) -> None:
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    prefix = "aqtopo" if rank is None else f"aqtopo [rank {rank}]"
    for line in f"{prefix}: {text}".splitlines():
        print(textwrap.fill(line, 100, break_long_words=False, break_on_hyphens=False), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
