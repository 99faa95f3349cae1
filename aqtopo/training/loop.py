"""The training loop: epochs of steps, and between them validation, saving, early stopping, orderly ends."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aqtopo.checkpoint.save import save
from aqtopo.checkpoint.tags import Tag
from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.check import check_store
from aqtopo.data.loader import evaluation_loader, training_steps
from aqtopo.data.samples import StepPlan, sample_table
from aqtopo.data.store import Store, open_store
from aqtopo.model import Terrain, build_model
from aqtopo.training import distributed
from aqtopo.training.distributed import Launch
from aqtopo.training.engine import batch_fields, build_engine
from aqtopo.training.run_directory import check_run_directory, claim_run_directory
from aqtopo.training.run_log import RunLog, peak_memory_gib
from aqtopo.training.schedule import Schedule
from aqtopo.training.step import StepResult, train_step
from aqtopo.training.stopping import EarlyStopping, StopSignals
from aqtopo.training.validation import validation_loss


@dataclass
class Progress:
    """Where the run is.

    Attributes:
        epoch: the current epoch, from 0.
        step_in_epoch: optimizer updates made in it.
        step: optimizer updates made in all.
        train_loss: of the last step.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    train_loss: float = float("nan")

    def tag(self, val_loss: float | None) -> Tag:
        """The name under which this state is saved."""
        return Tag(self.epoch, self.step, self.step_in_epoch, val_loss, self.train_loss)


@dataclass(frozen=True)
class Prepared:
    """What is known of a run before any process talks to another or writes a file."""

    config: RunConfig
    launch: Launch
    run_dir: Path
    store: Store
    plan: StepPlan
    schedule: Schedule


def prepare(config: RunConfig, launch: Launch) -> Prepared:
    """Open the data, count the steps and refuse what cannot work; writes nothing.

    Raises:
        ValueError: anything a user has to put right.
    """
    nodes, ranks_per_node = config.training.nodes, config.training.ranks_per_node
    if launch.size != config.world_size:
        raise ValueError(
            f"{launch.size} process(es) were started, but training.nodes x training.ranks_per_node = "
            f"{nodes} x {ranks_per_node} = {config.world_size}. Start that many, for example "
            f"`{launch.example(nodes, ranks_per_node)}`, or change training.nodes, training.ranks_per_node."
        )
    run_dir = Path(config.training.run_dir)
    check_run_directory(run_dir, config)
    store = open_store(config.data.store)
    check_store(store, config)
    plan = StepPlan.from_config(config, len(sample_table(config, store.times, "train")))
    if plan.micro_steps_per_epoch < config.training.validate_every:
        raise ValueError(
            f"training.validate_every = {config.training.validate_every} micro-steps, but an epoch has only "
            f"{plan.micro_steps_per_epoch}: the run would never be validated. Lower training.validate_every."
        )
    schedule = Schedule.from_config(config, plan.steps_per_epoch)
    return Prepared(config, launch, run_dir, store, plan, schedule)


def train(config: RunConfig, launch: Launch, stop_after: int | None = None) -> None:
    """Train a model from the start, as one of `launch.size` processes.

    Args:
        config: the run.
        launch: who this process is.
        stop_after: end after this many steps, as if asked to by a signal; None for the whole run.

    Raises:
        ValueError: anything a user has to put right, before anything is written.
        NonFiniteLossError: the loss is not a number any more.
    """
    prepared = prepare(config, launch)
    with StopSignals() as signals:
        device = distributed.connect(launch)
        if launch.is_main:
            claim_run_directory(prepared.run_dir, config, launch, device)
        log = RunLog(prepared.run_dir if launch.is_main else None, prepared.schedule.total_steps)
        model = build_model(config, Terrain(prepared.store.static["elevation"], prepared.store.lat))
        engine = build_engine(config, model, launch.size, device)
        run = _Run(prepared, engine, device, log, signals, stop_after)
        try:
            run.execute()
        finally:
            log.close()
            distributed.disconnect()


class _Run:
    """One process's part in a run, from the sanity validation to the last save."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Any,
        device: torch.device,
        log: RunLog,
        signals: StopSignals,
        stop_after: int | None,
    ) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.engine = engine
        self.device = device
        self.log = log
        self.signals = signals
        self.stop_after = stop_after
        self.progress = Progress()
        self.early = EarlyStopping(self.config.training.patience)
        self.saved_step = -1
        rank, size = prepared.launch.rank, prepared.launch.size
        self.validation_batches = evaluation_loader(
            prepared.store, self.config, "validation", rank, size, self.config.micro_batch
        )

    def execute(self) -> None:
        """Train until the last step, a signal or the end of patience; leave a saved state in any case."""
        self._announce()
        reason = self._train()
        if self.saved_step != self.progress.step:
            self._save(None)
        self.log.event("stop", step=self.progress.step, reason=reason, best=self.early.best)
        self.log.say(f"stopped at step {self.progress.step}: {reason}; best val_loss {self.early.best:.4f}")

    def _announce(self) -> None:
        """Say what will run, and try validation before hours of training depend on it."""
        prepared, launch = self.prepared, self.prepared.launch
        fields = batch_fields(self.config, launch.size)
        self.log.say(
            f"{self.config.name}: {launch.size} rank(s) on {self.device.type}, micro-batch "
            f"{fields['train_micro_batch_size_per_gpu']} x accumulation "
            f"{fields['gradient_accumulation_steps']}, {self.config.train_batch} samples a step, "
            f"{prepared.plan.steps_per_epoch} steps an epoch, {prepared.schedule.total_steps} in all"
        )
        limit = self.config.training.sanity_micro_batches
        if limit:
            val_loss = validation_loss(self.engine, self.validation_batches, limit)
            self.log.say(f"sanity validation on {limit} batch(es) a rank: loss {val_loss:.4f}")
        self.log.event("start", world_size=launch.size, **fields, total_steps=prepared.schedule.total_steps)

    def _train(self) -> str:
        """Run the epochs; the reason for ending."""
        for epoch in range(self.config.training.epochs):
            self.progress.epoch, self.progress.step_in_epoch = epoch, 0
            launch = self.prepared.launch
            steps = training_steps(self.prepared.store, self.config, epoch, 0, launch.rank, launch.size)
            began = time.monotonic()
            for micro_batches in steps:
                result = self._step(micro_batches, began)
                if self._validation_due():
                    self._validate()
                elif self._save_due():
                    self._save(None)
                if result.stop:
                    return "asked to stop by a signal"
                if self.stop_after is not None and self.progress.step >= self.stop_after:
                    return f"--stop-after {self.stop_after}"
                if self.early.exhausted:
                    return f"no better val_loss in {self.early.waited} validations"
                began = time.monotonic()  # the next step's time begins with the wait for its data
        return "all epochs done"

    def _step(self, micro_batches: list[Batch], began: float) -> StepResult:
        """One update, and what the log says of it; `began` is when the wait for its data began [s]."""
        progress = self.progress
        lrs = self.prepared.schedule.lrs(progress.step)
        result = train_step(
            self.engine,
            micro_batches,
            self.config,
            progress.epoch,
            progress.step,
            lrs,
            self.signals.requested,
        )
        progress.step += 1
        progress.step_in_epoch += 1
        progress.train_loss = result.loss
        if progress.step % self.config.training.log_every == 0:
            self._log_step(result, lrs, time.monotonic() - began)
        return result

    def _log_step(self, result: StepResult, lrs: dict[str, float], seconds: float) -> None:
        progress = self.progress
        self.log.event(
            "step",
            step=progress.step,
            epoch=progress.epoch,
            train_loss=result.loss,
            lr=lrs,
            grad_norm=result.grad_norm,
            samples_per_s=result.samples / seconds,
            memory_gib=peak_memory_gib(self.device),
            filled=result.filled,
        )
        self._monitor({"Train/loss": result.loss, "Train/grad_norm": result.grad_norm})
        self._monitor({f"Train/lr/{group}": lr for group, lr in lrs.items()})
        self.log.progress(progress.step, f"epoch {progress.epoch}  loss {result.loss:.4f}")

    def _monitor(self, values: dict[str, float]) -> None:
        """Pass values on to the monitors that the `deepspeed` block switches on."""
        if self.engine.monitor.enabled:
            self.engine.monitor.write_events(
                [(name, value, self.progress.step) for name, value in values.items()]
            )

    def _validation_due(self) -> bool:
        """Whether this step completed another `validate_every` micro-steps of the epoch."""
        every, accumulation = self.config.training.validate_every, self.config.accumulation
        limit = self.prepared.plan.micro_steps_per_epoch
        done = min(self.progress.step_in_epoch * accumulation, limit)
        before = (self.progress.step_in_epoch - 1) * accumulation
        return done // every > before // every

    def _save_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return every is not None and self.progress.step % every == 0

    def _validate(self) -> None:
        val_loss = validation_loss(self.engine, self.validation_batches)
        best = self.early.update(val_loss)
        self.log.event(
            "validation", step=self.progress.step, epoch=self.progress.epoch, val_loss=val_loss, best=best
        )
        self._monitor({"Validation/loss": val_loss})
        self.log.say(
            f"step {self.progress.step}: val_loss {val_loss:.4f}{' (best)' if best else ''}, "
            f"train loss {self.progress.train_loss:.4f}"
        )
        self._save(val_loss)

    def _save(self, val_loss: float | None) -> None:
        tag = self.progress.tag(val_loss)
        save(self.engine, self.prepared.run_dir, tag, self.config.checkpoint, distributed.barrier)
        self.saved_step = self.progress.step
