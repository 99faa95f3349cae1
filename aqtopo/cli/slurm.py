"""`aqtopo slurm`: the batch scripts, for those who have no checkout."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Write the batch scripts.")

DEFAULT_SITE = "${AQTOPO_SITE:-lumi}"
"""Expression of the scripts for the site, with its default."""


@app.callback()
def _group() -> None:
    """Write the batch scripts."""  # Typer merges a group with its only command unless it has a callback.


@app.command()
def init(
    site: Annotated[str, typer.Option(help="Cluster: a name in slurm/sites, such as lumi.", metavar="NAME")],
    out: Annotated[
        Path, typer.Option(help="Folder in which `slurm` is written; jobs are submitted from it.")
    ] = Path(),
) -> None:
    """Write the batch scripts to OUT/slurm, with a site as their default."""
    from aqtopo.shipped import shipped_folder

    source, target = shipped_folder("slurm"), out / "slurm"
    sites = sorted(path.stem for path in (source / "sites").glob("*.sh"))
    if site not in sites:
        raise ValueError(f"--site {site}: there is no such site. Choose {', '.join(sites)}.")
    if target.exists():
        raise ValueError(f"{target} exists already and is not replaced. Name another folder in --out.")
    shutil.copytree(source, target)
    for path in (path for path in target.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(DEFAULT_SITE, DEFAULT_SITE.replace("lumi", site)), encoding="utf-8")
    typer.echo(f"{target}: written for the site {site}; its values are in {target / 'sites' / site}.sh")
    typer.echo(f"To submit, in {out.resolve()}: slurm/submit.sh --nodes=N slurm/train.sbatch CONFIG RUN_DIR")
