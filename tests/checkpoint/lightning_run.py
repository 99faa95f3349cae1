"""A run that the real Lightning trains and saves, for `import-lightning` to go on from."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from aqtopo.config import RunConfig, load_config
from aqtopo.data.batch import Batch
from aqtopo.data.loader import TrainingLoader
from aqtopo.data.store import Store, open_store
from aqtopo.model import Terrain, build_model
from aqtopo.training.engine import group_parameters
from aqtopo.training.step import squared_error

MICRO_STEPS = 173
"""In an epoch."""

SHUFFLED = ("others", "head", "vit_blocks", "wind_embedding")
"""The order of the groups."""


class Published(lightning.LightningModule):
    """As the published TopoFlow trains: the model under `model.`, its tokeniser called `patch_embed`."""

    def __init__(self, config: RunConfig, out: Path, save_at: int) -> None:
        super().__init__()
        self.config, self.path, self.save_at = config, out / "run.ckpt", save_at
        self.store = open_store(config.data.store)
        self.model = build_model(
            config, Terrain(self.store.static["elevation"], self.store.lat, self.store.lon)
        )
        self.errors: list[float] = []
        self.losses: list[float] = []

    def training_step(self, fed: tuple[Batch, int, bool], _: int) -> Tensor:
        batch, pixels, last = fed
        prediction = self.model(batch.inputs, batch.wind, batch.lead_hours, [0] * len(batch.places))
        error = squared_error(prediction, batch.targets, batch.valid) / pixels
        self.errors.append(float(error))
        if last:
            self.losses.append(sum(self.errors))
            self.errors.clear()
        return error * self.config.accumulation  # Lightning divides by the accumulation

    def configure_optimizers(self) -> Any:
        chosen, named = self.config.optimizer, dict(self.model.named_parameters())
        names = group_parameters(named, self.config)
        rates = {group.name: group.lr_multiplier * chosen.base_lr for group in chosen.groups}
        groups = [{"params": [named[n] for n in names[g]], "lr": rates[g]} for g in SHUFFLED]
        optimizer = torch.optim.AdamW(groups, weight_decay=chosen.weight_decay, betas=chosen.betas)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.config.training.epochs, eta_min=self.config.schedule.eta_min
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "epoch"}}

    def train_dataloader(self) -> "Fed":
        return Fed(self.store, self.config, self.trainer.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n.replace("token_embeds", "patch_embed"): t for n, t in state.items()}

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == self.save_at and not self.path.exists():
            self.trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self) -> None:
        self.trainer.save_checkpoint(self.path.with_name(f"epoch{self.trainer.current_epoch}.ckpt"))


class Fed:
    """An epoch's micro-batches, in the run's own order, with what the loss divides by."""

    def __init__(self, store: Store, config: RunConfig, epoch: int) -> None:
        self.store, self.config, self.epoch = store, config, epoch

    def __len__(self) -> int:
        return MICRO_STEPS

    def __iter__(self) -> Iterator[tuple[Batch, int, bool]]:
        for micro_batches in TrainingLoader(self.store, self.config, 0, 1).steps(self.epoch):
            pixels = sum(int(batch.valid.sum()) for batch in micro_batches)
            for batch in micro_batches:
                yield batch, pixels, batch is micro_batches[-1]


def train(config_path: str, out: str, save_at: int, more: int) -> None:
    """Train the model of a run with Lightning, save at a step, go on, and write down the losses."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    config = load_config(Path(config_path))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=config.training.epochs,
        max_steps=save_at + more,
        accumulate_grad_batches=config.accumulation,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    run = Published(config, Path(out), save_at)
    trainer.fit(run)
    Path(out, "losses.json").write_text(json.dumps(run.losses[save_at : save_at + more]), encoding="utf-8")
