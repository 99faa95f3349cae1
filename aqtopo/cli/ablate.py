"""`aqtopo ablate`: compare variants of a model."""

import shlex
import sys
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import Json, Overrides

if TYPE_CHECKING:
    from aqtopo.ablation.plan import Ablation


def ablate(
    config: Annotated[Path, typer.Argument(help="The JSON file of the baseline.")],
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="NAME,...|A.B=VALUE,VALUE",
            help="Factors: names of the model's settings, or a setting with its values, the last of which is "
            "the baseline's; repeatable.",
        ),
    ],
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'A=VALUE B=VALUE'",
            help="A variant outside the grid: its differences from the baseline; repeatable.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Trainings of each variant, with consecutive seeds from the run's.")
    ] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for trainings and results.", show_default="runs/ablate_NAME")
    ] = None,
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Concurrent trainings on this machine.")] = 1,
    block_days: Annotated[int, typer.Option(min=1, help="Days per block of the bootstrap.")] = 10,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 2000,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="Write the configurations; print the command to submit a job array."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the variants of a run under equal conditions; report their differences with confidence intervals.

    After a kill, the same command resumes: finished trainings are kept, unfinished ones continue.
    """
    from rich.console import Console

    from aqtopo.ablation.bootstrap import check_blocks
    from aqtopo.ablation.factors import parse_factors
    from aqtopo.ablation.plan import claim_folder, plan_ablation
    from aqtopo.ablation.report import result_tables, write_comparison
    from aqtopo.ablation.results import collect_scores, compare_variants
    from aqtopo.ablation.starts import compare_starts
    from aqtopo.ablation.trainer import run_trials, scored_days
    from aqtopo.config import load_config
    from aqtopo.data.store import open_run_store

    name = load_config(config, overrides or []).name
    folder = out or Path(f"runs/ablate_{name}")
    plan = plan_ablation(config, overrides or [], parse_factors(grid), seeds, folder, also or [])
    store = open_run_store(plan.base)
    check_blocks(scored_days(plan.base, store), block_days)
    first_seed = [trial.config for trial in plan.trials[: len(plan.variants)]]
    alike = compare_starts(first_seed, store)
    _say(str(alike))
    known = {trial.number for trial in plan.trials if plan.config_path(trial).is_file()}
    claim_folder(plan)
    if slurm:
        _print_job_array(plan, known)
        return
    run_trials(plan, jobs, _say)
    result = compare_variants(plan, collect_scores(plan), block_days, draws).assign_attrs(alike=str(alike))
    written = write_comparison(plan, result)
    if as_json:
        typer.echo(written.read_text(encoding="utf-8"), nl=False)
        return
    console = Console(width=max(Console().width, 130), highlight=False)
    main_effects = sum(len(factor.levels) - 1 for factor in plan.factors)
    for table in result_tables(result)[: 2 + main_effects]:
        console.print(table.as_rich())
    console.print(
        f"written to {written}; results.md in the same folder has all pairs of variants", soft_wrap=True
    )


def _print_job_array(plan: "Ablation", known: Set[int]) -> None:
    """Print the command that submits the unfinished trainings; `known` are those already in the folder."""
    from aqtopo.ablation.trainer import format_tasks, unfinished

    tasks = unfinished(plan)
    if not tasks:
        _say(
            f"all {len(plan.trials)} trainings are done. To compare them, repeat the command without --slurm."
        )
        return
    if before := [number for number in tasks if number in known]:
        _say(
            f"tasks {format_tasks(before)} may already be queued by an earlier array. If so, leave them out."
        )
    typer.echo(
        f"slurm/submit.sh --array={format_tasks(tasks)} slurm/ablation.sbatch {shlex.quote(str(plan.out))}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
