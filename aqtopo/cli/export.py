"""`aqtopo export`: write a trained model for other users."""

from pathlib import Path
from typing import Annotated

import typer

from aqtopo.cli.options import RunDir, SavedTag


def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    tag: SavedTag = "best",
) -> None:
    """Write weights, terrain and a model card; `aqtopo forecast OUT` uses them without DeepSpeed."""
    from aqtopo.evaluation.results import SCORES_FILE, read_score_file
    from aqtopo.inference.export import export_model

    scores = read_score_file(run_dir) if (run_dir / SCORES_FILE).is_file() else None
    card = export_model(run_dir, tag, out, None if scores is None else scores.model_dump(mode="json"))
    if card.scores:
        scored = "with its scores"
    elif scores is None:
        scored = "without scores: the run has none. Run `aqtopo evaluate` before `aqtopo export` to add them"
    else:
        scored = (
            f"without scores: those of the run are of {scores.tag}. Run `aqtopo evaluate {run_dir} --tag "
            f"{card.tag}` before `aqtopo export` to add them"
        )
    size = sum(record.size for record in card.files.values()) / 2**20
    typer.echo(f"{out}: {card.name}, {card.tag}, {size:.1f} MiB, {scored}")
