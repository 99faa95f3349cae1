"""Importance of attention and of alpha in trained models, by ablation at inference.

    python scripts/attention_importance.py runs/ablation/ridges/runs/*/seed?

For each run, on its validation samples: the loss, and its change when the attention of one block or of all
blocks returns the mean over all tokens, and when alpha is set to other values. If neither changes the loss,
an attention bias cannot change it either.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from aqtopo.data.batch import Batch
from aqtopo.data.loader import EvaluationLoader
from aqtopo.inference.load import load_run
from aqtopo.model import AirQualityViT
from aqtopo.training.step import squared_error

ALPHAS = (0.0, 1.0, 4.0, 8.0)
"""Values of alpha to test [km-1]."""


@torch.no_grad()
def loss(model: AirQualityViT, batches: Sequence[Batch]) -> float:
    """Return the mean squared error over valid pixels."""
    error = pixels = 0.0
    for batch in batches:
        prediction = model(*batch.model_inputs)
        error += float(squared_error(prediction, batch.targets, batch.valid))
        pixels += float(batch.valid.sum())
    return error / pixels


@contextmanager
def averaged(attention: nn.Module) -> Iterator[None]:
    """Replace the output of an attention by its mean over tokens."""

    def average(_: nn.Module, __: object, output_BND: Tensor) -> Tensor:
        return output_BND.mean(1, keepdim=True).expand_as(output_BND)

    handle = attention.register_forward_hook(average)
    try:
        yield
    finally:
        handle.remove()


def without_attention(model: AirQualityViT, batches: Sequence[Batch], blocks: Sequence[int]) -> float:
    """Return the loss with the attention of some blocks averaged."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(averaged(model.get_submodule(f"blocks.{block}.attn")))
        return loss(model, batches)


def with_alpha(model: AirQualityViT, batches: Sequence[Batch], alpha: float) -> float | None:
    """Set every alpha of the model and return the loss; None if the model has no alpha."""
    alphas = [weight for name, weight in model.named_parameters() if name.endswith("attn.alpha")]
    for weight in alphas:
        nn.init.constant_(weight, alpha)
    return loss(model, batches) if alphas else None


def row(run_dir: Path) -> list[str]:
    """Return the table row of a run."""
    run = load_run(run_dir)
    model = run.model
    batches = list(EvaluationLoader(run.store, run.config, "validation", rank=0, world=1, batch=32))
    baseline, blocks = loss(model, batches), range(len(model.blocks))
    averages = [without_attention(model, batches, [block]) for block in blocks]
    averages.append(without_attention(model, batches, blocks))
    others = [with_alpha(model, batches, alpha) for alpha in ALPHAS]
    found = (*averages, *others)
    changes = ["-" if value is None else f"{100 * (value / baseline - 1):+.2f}" for value in found]
    return [f"{run_dir.parent.name} {run_dir.name}", f"{baseline:.4f}", " ".join(changes[:-5]), *changes[-5:]]


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    table = Table(title="Change of the validation loss [%]")
    for column in ("run", "loss", "each attention averaged", "all", *(f"alpha {a:g}" for a in ALPHAS)):
        table.add_column(column)
    for run_dir in parser.parse_args().runs:
        table.add_row(*row(run_dir))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
