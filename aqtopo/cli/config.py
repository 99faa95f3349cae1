"""`aqtopo config`: check, show and describe a run's configuration."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import Overrides

if TYPE_CHECKING:
    from aqtopo.config import RunConfig

app = typer.Typer(no_args_is_help=True, help="Check, show and describe configurations.")

File = Annotated[Path, typer.Argument(help="The run's JSON file.", metavar="FILE")]


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="The runs' JSON files.", metavar="FILE ...")],
    overrides: Overrides = None,
) -> None:
    """Check configurations: values, optimizer groups and, if the store is there, that it fits."""
    faults = []
    for file in files:
        try:
            _validate(file, overrides or [])
        except ValueError as error:
            if len(files) == 1:
                raise
            named = str(error).startswith(str(file))
            faults.append(str(error) if named else f"{file}: {error}")
    if faults:
        raise ValueError("\n".join(faults))


def _validate(file: Path, overrides: list[str]) -> None:
    """Check one configuration; print a line about it.

    Raises:
        ValueError: it is invalid.
    """
    from aqtopo.config import load_config

    config = load_config(file, overrides)
    _check_store(config)
    groups = _parameters_by_group(config, file)
    sizes = ", ".join(f"{name} {len(parameters)}" for name, parameters in groups.items())
    typer.echo(
        f"{file}: valid: {config.name}, {config.training.nodes} x {config.training.ranks_per_node} ranks, "
        f"{config.train_batch} samples per step, {config.deepspeed.precision}, tensors per group: {sizes}"
    )


def _check_store(config: "RunConfig") -> None:
    """Check grid, channels and hours of the run's store, as training does; say what is left unchecked."""
    from aqtopo.variables import VARIABLES

    path = Path(config.data.store)
    if path.exists():
        from aqtopo.data.metadata import check_fit, read_metadata
        from aqtopo.data.samples import sample_table

        store = read_metadata(path)
        check_fit(store, config)
        for split in ("train", "validation"):
            sample_table(config, store.times, split)
        return
    names = config.data.channels
    own = ", ".join(name for name in names if name not in VARIABLES)
    if own:
        typer.echo(f"There is no store at {path}, so these variables are not checked: {own}.", err=True)


@app.command()
def init(
    store: Annotated[Path, typer.Option(help="Data store that the run reads.", metavar="STORE")],
    like: Annotated[
        str,
        typer.Option(
            metavar="demo|small|lumi",
            help="Configuration to begin with: the demo on a CPU, a small model on one GPU, the full run on "
            "400 GPUs; or the name of another shipped configuration.",
        ),
    ] = "demo",
    out: Annotated[Path, typer.Option(help="New file.", metavar="FILE")] = Path("run.json"),
    overrides: Overrides = None,
) -> None:
    """Write a configuration that fits a store: its grid, years and variables; patch and regions divide it."""
    from aqtopo.distributed.launch import read_launch
    from aqtopo.planning.fit_store import fit_store

    if out.exists():
        raise ValueError(f"{out} exists already and is not replaced. Name another file in --out.")
    fitted = fit_store(like, store, out, overrides or [])
    with out.open("x", encoding="utf-8") as new:
        new.write(fitted.to_json())
    training = fitted.config.training
    start = read_launch().example(training.nodes, training.ranks_per_node, f"train {out}")
    typer.echo("\n".join([f"{out}: written, checked against {store}", *fitted.choices]))
    typer.echo(f"To train: {start}")


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of a configuration file."""
    from aqtopo.config import schema

    typer.echo(schema(), nl=False)


@app.command()
def show(
    file: File,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only JSON, with defaults filled in.")
    ] = False,
) -> None:
    """Show a configuration with defaults and overrides, and the values derived from it."""
    from aqtopo.config import load_config

    config = load_config(file, overrides or [])
    if as_json:
        typer.echo(config.to_json())
    else:
        _print_table(config)


def _parameters_by_group(config: "RunConfig", file: Path) -> dict[str, list[str]]:
    """Return the parameter names by optimizer group, from a model on the meta device."""
    import torch

    from aqtopo.model import Terrain, build_model
    from aqtopo.training.engine import group_parameters

    with torch.device("meta"):
        model = build_model(config, Terrain.flat(config.data.grid))
    try:
        return group_parameters([name for name, _ in model.named_parameters()], config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _print_table(config: "RunConfig") -> None:
    """Print every value by its path for `--set`, then the derived values."""
    from rich.table import Table

    from aqtopo.cli.terminal import new_console

    table = Table(title=config.name, title_justify="left")
    table.add_column("path", overflow="fold")
    table.add_column("value", overflow="fold")
    for path, value in _leaves(json.loads(config.to_json())):
        table.add_row(path, json.dumps(value))
    table.add_section()
    for name, value in _derived(config).items():
        table.add_row(name, str(value), style="dim")
    new_console().print(table)


def _leaves(tree: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            leaves += _leaves({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _derived(config: "RunConfig") -> dict[str, object]:
    rows, columns = config.patch_grid
    return {
        "world size": config.world_size,
        "samples per step": config.train_batch,
        "tokens": f"{config.tokens} ({rows} x {columns})",
        "patches per region": "{} x {}".format(*config.region_patches),
        "head width": config.model.head_dim,
        "precision": config.deepspeed.precision,
        "digest": config.digest,
    }
