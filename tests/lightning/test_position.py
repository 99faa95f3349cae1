"""Positions of files that the real Lightning saves, with and without an incomplete last micro-batch."""

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl  # `lightning` is this folder
import torch
from torch.utils.data import DataLoader, TensorDataset

from aqtopo.data.samples import StepPlan
from aqtopo.lightning.position import loop_position
from aqtopo.refusal import RefusedError

SAMPLES, MICRO_BATCH, ACCUMULATION, EPOCHS = 27, 2, 3, 3
PLAN = StepPlan(SAMPLES, MICRO_BATCH, ACCUMULATION, world=1)
"""13 micro-steps and 5 steps an epoch; with the incomplete micro-batch 14 and 5."""

LONGER = StepPlan(25, MICRO_BATCH, ACCUMULATION, world=1)
"""12 micro-steps and 4 steps an epoch; with the incomplete micro-batch 13 and 5."""

PATH = Path("last.ckpt")
Files = dict[tuple[int, int], dict[str, Any]]
"""Contents by epoch and micro-step; those of an epoch's end have -1, of the run's end epoch 3 and 0."""


class Line(pl.LightningModule):
    """A model of one parameter that keeps what Lightning would save after each micro-step."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.saved = torch.nn.Linear(1, 1), Files()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        loss: torch.Tensor = self.linear(batch[0]).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())

    def keep(self, micro_step: int) -> None:
        self.saved[self.current_epoch, micro_step] = self.trainer._checkpoint_connector.dump_checkpoint()

    def on_train_batch_end(self, *place: Any) -> None:
        self.keep(place[-1] + 1)

    def on_train_epoch_end(self) -> None:
        self.keep(-1)

    def on_train_end(self) -> None:
        self.keep(0)


def saved_by_lightning(samples: int, *, drop_last: bool, folder: Path) -> Files:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATION, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    line = Line()
    trainer.fit(line, DataLoader(TensorDataset(torch.ones(samples, 1)), MICRO_BATCH, drop_last=drop_last))
    return line.saved


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("plan", [PLAN, LONGER], ids=["same steps", "one step more"])
def test_every_position_is_the_number_of_whole_steps_of_the_epoch(
    plan: StepPlan, drop_last: bool, tmp_path: Path
) -> None:
    files = saved_by_lightning(plan.samples, drop_last=drop_last, folder=tmp_path)
    last = plan.steps_per_epoch
    micro_steps = plan.micro_steps_per_epoch + (not drop_last)
    assert len(files) == EPOCHS * (micro_steps + 1) + 1
    for (epoch, micro_step), content in files.items():
        ended = micro_step in (-1, micro_steps)
        done = last if ended else min(micro_step // ACCUMULATION, last)
        found = loop_position(PATH, content, plan)
        expected = (epoch, done, epoch * last + done)
        assert (found.epoch, found.step_in_epoch, found.step) == expected, (epoch, micro_step)


@pytest.mark.parametrize(
    ("plan", "place", "message"),
    [
        (StepPlan(60, 2, 3, 1), (2, 4), r"10 steps in 2 epochs before, but this run has 10 steps per epoch"),
        (StepPlan(60, 2, 3, 1), (0, -1), r"5 steps in a whole epoch, but this run has 10 steps per epoch"),
        (StepPlan(13, 2, 3, 1), (1, 1), r"5 steps in 1 epochs before, .* 2 \(3 with drop_last=False\) steps"),
        (StepPlan(27, 2, 4, 1), (0, 6), r"2 steps after 6 micro-steps of the epoch, .* accumulates 4"),
        (StepPlan(7, 2, 3, 1), (0, 12), r"4 steps in epoch 0, but this run has 1 \(2 with drop_last=False\)"),
    ],
)
def test_epochs_of_another_length_and_another_accumulation_are_refused(
    plan: StepPlan, place: tuple[int, int], message: str, tmp_path: Path
) -> None:
    content = saved_by_lightning(SAMPLES, drop_last=False, folder=tmp_path)[place]
    with pytest.raises(RefusedError, match=message):
        loop_position(PATH, content, plan)


@pytest.mark.parametrize("loops", [{}, {"fit_loop": {}}, None])
def test_a_file_without_loop_counters_is_refused(loops: Any) -> None:
    content = {"epoch": 1, "global_step": 5, "loops": loops}
    with pytest.raises(RefusedError, match=r"last.ckpt: its position is unknown(?s:.*)loop counters"):
        loop_position(PATH, content, PLAN)
