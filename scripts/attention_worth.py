"""How much a trained model's attention is worth, and how much its alpha.

    python scripts/attention_worth.py runs/ablation/ridges/runs/*/seed?

For each run, on its validation samples: the loss, by how much it grows when the attention of a block, or of
all, gives every token the mean over all tokens, and when alpha is set to other values. Where both hardly
matter, no bias on the attention can matter either.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from aqtopo.checkpoint import load_run
from aqtopo.data.batch import Batch
from aqtopo.data.loader import EvaluationLoader
from aqtopo.model import AirQualityViT
from aqtopo.training.step import squared_error

ALPHAS = (0.0, 1.0, 4.0, 8.0)
"""[km-1]"""


@torch.no_grad()
def loss(model: AirQualityViT, batches: Sequence[Batch]) -> float:
    """Mean squared error over valid pixels."""
    error = pixels = 0.0
    for batch in batches:
        prediction = model(batch.inputs, batch.wind, batch.lead_hours, None)
        error += float(squared_error(prediction, batch.targets, batch.valid))
        pixels += float(batch.valid.sum())
    return error / pixels


@contextmanager
def averaged(attention: nn.Module) -> Iterator[None]:
    """Let an attention give every token the mean of what it gives all."""

    def average(_: nn.Module, __: object, given_BND: Tensor) -> Tensor:
        return given_BND.mean(1, keepdim=True).expand_as(given_BND)

    handle = attention.register_forward_hook(average)
    try:
        yield
    finally:
        handle.remove()


def without_attention(model: AirQualityViT, batches: Sequence[Batch], blocks: Sequence[int]) -> float:
    """The loss with the attention of some blocks averaged."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(averaged(model.get_submodule(f"blocks.{block}.attn")))
        return loss(model, batches)


def with_alpha(model: AirQualityViT, batches: Sequence[Batch], alpha: float) -> float | None:
    """The loss with every alpha set to a value; None where there is none. The model is left so."""
    alphas = [weight for name, weight in model.named_parameters() if name.endswith("attn.alpha")]
    for weight in alphas:
        nn.init.constant_(weight, alpha)
    return loss(model, batches) if alphas else None


def row(run_dir: Path) -> list[str]:
    """One run's figures."""
    run = load_run(run_dir)
    model = run.model
    batches = list(EvaluationLoader(run.store, run.config, "validation", rank=0, world=1, batch=32))
    usual, blocks = loss(model, batches), range(len(model.blocks))
    averages = [without_attention(model, batches, [block]) for block in blocks]
    averages.append(without_attention(model, batches, blocks))
    others = [with_alpha(model, batches, alpha) for alpha in ALPHAS]
    found = (*averages, *others)
    changes = ["-" if value is None else f"{100 * (value / usual - 1):+.2f}" for value in found]
    return [f"{run_dir.parent.name} {run_dir.name}", f"{usual:.4f}", " ".join(changes[:-5]), *changes[-5:]]


def main() -> None:
    """Print a row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    table = Table(title="Change of the validation loss [%]")
    columns = ("run", "loss", "each attention averaged", "all", *(f"alpha {alpha:g}" for alpha in ALPHAS))
    for column in columns:
        table.add_column(column)
    for run_dir in parser.parse_args().runs:
        table.add_row(*row(run_dir))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
