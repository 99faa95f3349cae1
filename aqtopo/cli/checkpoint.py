"""`aqtopo checkpoint`: list, inspect, verify, convert, export, compare and import saved states."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from aqtopo.cli.options import AllowChange, AllowUnexpected, Json, RunDir, print_json

app = typer.Typer(
    no_args_is_help=True, help="Saved states: list, inspect, verify, convert, export, compare, import."
)

State = Annotated[Path, typer.Argument(help="Folder of a tag, of a universal checkpoint, or of a run.")]


@app.command("ls")
def list_command(run_dir: RunDir, as_json: Json = False) -> None:
    """List the saved states of a run."""
    from aqtopo.checkpoint.listing import list_folders

    rows = list_folders(run_dir)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        raise ValueError(f"{run_dir} has no saved state.")
    _print_table(
        ("tag", "step", "val_loss", "MiB", "complete"),
        [
            (
                row.name,
                "" if row.step is None else str(row.step),
                "" if row.val_loss is None else f"{row.val_loss:.4f}",
                f"{row.size / 2**20:.1f}",
                "yes" if row.complete and not row.note else row.note,
            )
            for row in rows
        ],
    )


@app.command()
def inspect(state: State, as_json: Json = False) -> None:
    """Show groups, parameters, shapes and the norms of weights and moments."""
    from aqtopo.checkpoint.inspection import inspect_state, opened

    with opened(state) as (saved,):
        rows = list(inspect_state(saved))
    manifest = saved.manifest
    if as_json:
        summary = manifest.model_dump(mode="json", by_alias=True, exclude={"files"})
        print_json(summary | {"tensors": [asdict(row) for row in rows]})
        return
    table = [
        (row.group, row.name, "x".join(map(str, row.shape)), *(f"{norm:.4g}" for norm in row.norms.values()))
        for row in rows
    ]
    _print_table(("group", "parameter", "shape", "|weight|", "|exp_avg|", "|exp_avg_sq|"), table)
    typer.echo(
        f"{manifest.tag}: {manifest.layout}, {manifest.optimizer}, {manifest.run.precision}, step "
        f"{manifest.run.position.step}, saved by {manifest.world_size} rank(s)"
    )


@app.command()
def verify(state: State, as_json: Json = False) -> None:
    """Check every file, tensor and number of a saved state; exit code 3 if one is damaged."""
    from aqtopo.checkpoint.inspection import opened, verify_state
    from aqtopo.refusal import RefusedError

    try:
        with opened(state) as (saved,):
            count = verify_state(saved)
    except RefusedError as refusal:
        if as_json:
            print_json({"sound": False, "problems": str(refusal).splitlines()})
        raise
    if as_json:
        files = len(saved.manifest.files)
        print_json({"sound": True, "tag": saved.manifest.tag, "tensors": count, "files": files})
    else:
        typer.echo(f"{saved.folder}: sound, {count} tensors in {len(saved.manifest.files)} files")


@app.command()
def convert(tag: State, out: Annotated[Path, typer.Argument(help="New folder.")]) -> None:
    """Write a saved state by parameter name, as DeepSpeed's universal checkpoint."""
    from aqtopo.checkpoint.files import check_files
    from aqtopo.checkpoint.inspection import find_state
    from aqtopo.checkpoint.manifest import read_manifest
    from aqtopo.checkpoint.tags import read_lock
    from aqtopo.checkpoint.universal import convert as convert_state
    from aqtopo.distributed.process_group import SINGLE_RANK

    source = find_state(tag)
    manifest = read_manifest(source)
    if manifest.layout == "universal":
        raise ValueError(f"{source} is already universal.")
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten. Name another folder.")
    if source.resolve() in out.resolve().parents:
        raise ValueError(f"{out} is inside {source}, which must not change. Name a folder elsewhere.")
    with read_lock(source):
        check_files(source, manifest.files, SINGLE_RANK)
        convert_state(source, out / source.name, SINGLE_RANK)
    typer.echo(f"{out}: {len(manifest.parameters)} parameters, step {manifest.run.position.step}")


@app.command()
def export(tag: State, out: Annotated[Path, typer.Argument(help="New safetensors file.")]) -> None:
    """Write all fp32 weights by name to one safetensors file, for other programs."""
    from aqtopo.inference.export import export_weights

    metadata = export_weights(tag, out)
    typer.echo(f"{out}: " + ", ".join(f"{key} {value}" for key, value in metadata.items()))


@app.command()
def diff(one: State, other: State, as_json: Json = False) -> None:
    """Compare two saved states by parameter name; exit code 1 if they differ."""
    from aqtopo.checkpoint.inspection import diff_states, opened

    with opened(one, other) as (saved, other_saved):
        differences = list(diff_states(saved, other_saved))
    if as_json:
        print_json([{"name": name, "difference": text} for name, text in differences])
    elif differences:
        _print_table(("name", "difference"), differences)
    else:
        typer.echo("bitwise equal: all weights, moments, hyperparameters and the step")
    if differences:
        raise typer.Exit(1)


@app.command("import-lightning")
def import_lightning_command(
    file: Annotated[Path, typer.Argument(help="Lightning checkpoint with optimizer states.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    config: Annotated[Path, typer.Option(help="Configuration of the run that resumes from it.")],
    rules: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="REGEX=REPLACEMENT", help="Rename tensors; repeatable."),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="named_parameters|FILE",
            help="Order of the parameters in the file's groups: that of the model, or a file of names.",
        ),
    ] = None,
    allow_change: AllowChange = None,
    allow_unexpected: AllowUnexpected = None,
) -> None:
    """Convert a Lightning DDP checkpoint for `aqtopo train --resume OUT`."""
    from aqtopo.checkpoint.changes import Allowed
    from aqtopo.config import load_config
    from aqtopo.lightning.importer import import_lightning
    from aqtopo.lightning.match import ParameterOrder

    manifest = import_lightning(
        file,
        out,
        load_config(config),
        [_rule(text) for text in rules or ()],
        ParameterOrder.parse(order),
        Allowed(tuple(allow_change or ()), unexpected=tuple(allow_unexpected or ())),
    )
    groups = ", ".join(f"{group.name} {len(group.parameters)}" for group in manifest.groups)
    position, made = manifest.run.position, max(manifest.optimizer_steps.values())
    counted = "" if made == position.step else f" (step {made:.0f} in the file, whose epochs are longer)"
    typer.echo(
        f"{out}: {len(manifest.parameters)} parameters with both moments ({groups}), "
        f"epoch {position.epoch}, step {position.step}{counted}"
    )


def _rule(text: str) -> tuple[str, str]:
    pattern, separator, replacement = text.partition("=")
    if not pattern or not separator:
        raise ValueError(f"--map {text}: write REGEX=REPLACEMENT.")
    return pattern, replacement


def _print_table(titles: tuple[str, ...], rows: list[Any]) -> None:
    from rich.table import Table

    from aqtopo.cli.terminal import new_console

    table = Table(*titles)
    for row in rows:
        table.add_row(*row)
    new_console(width=None if new_console().is_terminal else 160).print(table)
