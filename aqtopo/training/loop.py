"""The training loop: epochs of steps, and between them validation, saving, early stopping, orderly ends."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aqtopo.checkpoint.manifest import Losses, Position, RunFacts
from aqtopo.checkpoint.retention import reading
from aqtopo.checkpoint.save import Saver
from aqtopo.checkpoint.tags import Tag
from aqtopo.checkpoint.weights import scaling_digest
from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.check import check_store
from aqtopo.data.loader import EvaluationLoader, TrainingLoader
from aqtopo.data.samples import StepPlan, sample_table
from aqtopo.data.store import Store, open_store
from aqtopo.model import Terrain, build_model
from aqtopo.training import distributed
from aqtopo.training.distributed import Launch
from aqtopo.training.engine import batch_fields, build_engine, check_engine
from aqtopo.training.groups import group_parameters
from aqtopo.training.position import next_samples
from aqtopo.training.probe import probe_batch, probe_loss
from aqtopo.training.resume import (
    AUTO,
    NEVER,
    Resumed,
    ResumeOptions,
    check_source,
    find_source,
    is_own,
    resume,
)
from aqtopo.training.run_directory import (
    check_run_directory,
    claim_run_directory,
    hold_run_directory,
    take_over_run_directory,
)
from aqtopo.training.run_log import RunLog, peak_memory_gib
from aqtopo.training.running_loss import RunningLoss
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
    options: ResumeOptions
    source: Path | None
    """The saved state to go on from; None for a fresh start."""

    @property
    def continues(self) -> bool:
        """Whether the run goes on in its own directory."""
        return self.source is not None and is_own(self.source, self.run_dir)


def prepare(config: RunConfig, launch: Launch, options: ResumeOptions) -> Prepared:
    """Open the data, count the steps and refuse what cannot work; writes nothing.

    Raises:
        ValueError: anything a user has to put right.
        RefusedError: the saved state is another run's.
    """
    nodes, ranks_per_node = config.training.nodes, config.training.ranks_per_node
    run_dir = Path(config.training.run_dir)
    source = find_source(run_dir, options.source)
    # A resumed run takes what ranks there are: the samples of a step are fixed by the configured world.
    if source is None and launch.size != config.world_size:
        raise ValueError(
            f"{launch.size} process(es) were started, but training.nodes x training.ranks_per_node = "
            f"{nodes} x {ranks_per_node} = {config.world_size}. Start that many, for example "
            f"`{launch.example(nodes, ranks_per_node)}`, or change training.nodes, training.ranks_per_node."
        )
    if source is None or not is_own(source, run_dir):
        check_run_directory(run_dir, config, start_over=options.source == AUTO)
    store = open_store(config.data.store)
    check_store(store, config)
    check_engine(config)
    with torch.device("meta"):  # names and shapes are enough to find what is wrong with groups or terrain
        model = build_model(config, Terrain(store.static["elevation"], store.lat))
    group_parameters([name for name, _ in model.named_parameters()], config)
    plan = StepPlan.from_config(config, len(sample_table(config, store.times, "train")))
    if not plan.validation_steps(config.training.validate_every):
        raise ValueError(
            f"training.validate_every = {config.training.validate_every} micro-steps, but an epoch has only "
            f"{plan.micro_steps_per_epoch}: the run would never be validated. Lower training.validate_every."
        )
    sample_table(config, store.times, "validation")
    schedule = Schedule.from_config(config, plan.steps_per_epoch)
    if source is not None:
        check_source(source, config, store, options.allowed)
    return Prepared(config, launch, run_dir, store, plan, schedule, options, source)


def train(
    config: RunConfig,
    launch: Launch,
    stop_after: int | None = None,
    options: ResumeOptions | None = None,
) -> None:
    """Train a model, from the start or from a saved state, as one of `launch.size` processes.

    Args:
        config: the run.
        launch: who this process is.
        stop_after: end after this many steps, as if asked to by a signal; None for the whole run.
        options: where to go on from; None never resumes.

    Raises:
        ValueError: anything a user has to put right, before anything is written.
        RefusedError: the run cannot go on from the saved state as asked; nothing is written.
        NonFiniteLossError: the loss is not a number any more.
    """
    prepared = prepare(config, launch, options or ResumeOptions(NEVER))
    device = distributed.connect(launch)
    ranks = distributed.World(launch.rank, launch.size, device)
    log = RunLog(prepared.run_dir if launch.is_main else None, prepared.schedule.total_steps)
    try:
        with hold_run_directory(prepared.run_dir, ranks):
            run = _make_run(prepared, ranks, log, stop_after)
            with run.signals, run.saver:  # only now is there something to save
                run.execute()
    finally:
        log.close()
        distributed.disconnect()


def _make_run(prepared: Prepared, ranks: distributed.World, log: RunLog, stop_after: int | None) -> "_Run":
    """The engine, fresh or resumed and verified; only then is the run directory written to."""
    config, launch, store, device = prepared.config, prepared.launch, prepared.store, ranks.device
    model = build_model(config, Terrain(store.static["elevation"], store.lat))
    probe, resumed = probe_batch(store, config), None
    if prepared.source is None:
        engine = build_engine(config, model, launch.size, device)
    else:
        with reading(prepared.source):  # another run, whose state this is, may be pruning
            resumed = resume(
                prepared.source,
                config,
                store,
                model,
                prepared.plan,
                prepared.schedule,
                probe,
                prepared.options.allowed,
                ranks,
                device,
            )
        engine = resumed.engine
    if launch.is_main and prepared.continues:
        take_over_run_directory(prepared.run_dir, config)
    elif launch.is_main:
        claim_run_directory(prepared.run_dir, config, launch, device)
    run = _Run(prepared, engine, ranks, log, stop_after, probe)
    if resumed is not None:
        run.go_on_from(resumed)
    return run


class _Run:
    """One process's part in a run, from the sanity validation to the last save."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Any,
        ranks: distributed.World,
        log: RunLog,
        stop_after: int | None,
        probe: Batch,
    ) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.engine = engine
        self.ranks = ranks
        self.device = ranks.device
        self.log = log
        self.signals = StopSignals()
        self.stop_after = stop_after
        self.progress = Progress()
        self.early = EarlyStopping(self.config.training.patience)
        self.saver = Saver(prepared.run_dir, self.config.checkpoint, ranks)
        self.saved_step = -1
        self.scaling_digest = scaling_digest(self.config, prepared.store)
        self.probe = probe
        self.running = RunningLoss()
        self.validation_steps = prepared.plan.validation_steps(self.config.training.validate_every)
        rank, size = prepared.launch.rank, prepared.launch.size
        self.training_batches = TrainingLoader(prepared.store, self.config, rank, size)
        self.validation_batches = EvaluationLoader(
            prepared.store, self.config, "validation", rank, size, self.config.micro_batch
        )

    def go_on_from(self, resumed: Resumed) -> None:
        """Take the position, the best validation loss and what the next losses are held against."""
        run = resumed.manifest.run
        position, losses = run.position, run.losses
        train_loss = float("nan") if losses.train is None else losses.train
        self.progress = Progress(position.epoch, position.step_in_epoch, position.step, train_loss)
        if losses.best_validation is not None:
            self.early.best = losses.best_validation
        self.early.waited = losses.validations_waited
        self.running.expected = losses.running
        if self.prepared.continues:
            self.saved_step = position.step
        self.log.say(resumed.line)
        self.log.event(
            "resume",
            step=position.step,
            source=str(self.prepared.source),
            line=resumed.line,
            seconds=resumed.seconds,
            world_before=resumed.manifest.world_size,
            world_size=self.ranks.size,
        )

    def execute(self) -> None:
        """Train until the last step, a signal or the end of patience; leave a saved state in any case."""
        self._announce()
        reason = self._train()
        if self.saved_step != self.progress.step:
            self._save(None)
        self.saver.finish()
        best = self.early.best if self.early.best < float("inf") else None
        self.log.event("stop", step=self.progress.step, reason=reason, best=best)
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
        self.log.say(f"attention: {self.engine.module.attention_backends(self.device)}")
        limit = self.config.training.sanity_micro_batches
        if limit:
            val_loss = validation_loss(self.engine, self.validation_batches, limit)
            self.log.say(f"sanity validation on {limit} batch(es) a rank: loss {val_loss:.4f}")
        self.log.event("start", world_size=launch.size, **fields, total_steps=prepared.schedule.total_steps)

    def _train(self) -> str:
        """Run the epochs from where the run is; the reason for ending."""
        progress = self.progress
        if self.stop_after is not None and progress.step >= self.stop_after:
            return f"--stop-after {self.stop_after}: already there"
        for epoch in range(progress.epoch, self.config.training.epochs):
            if epoch != progress.epoch:
                progress.epoch, progress.step_in_epoch = epoch, 0
            first = progress.step_in_epoch
            steps = self.training_batches.steps(epoch, first)
            began = time.monotonic()
            for micro_batches in steps:
                result = self._step(micro_batches, began)
                if self.progress.step_in_epoch in self.validation_steps:
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
            progress.step + 1,
            lrs,
            self.signals.requested,
        )
        progress.step += 1
        progress.step_in_epoch += 1
        progress.train_loss = result.loss
        if comparison := self.running.add(result.loss):
            facts = asdict(comparison) | {"jump": comparison.jump}
            self.log.event("loss_after_resume", step=progress.step, **facts)
            self.log.say(str(comparison))
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
        self.saver.save(self.engine, self.progress.tag(val_loss), self._facts())
        self.saved_step = self.progress.step

    def _facts(self) -> RunFacts:
        """What a manifest says of the run."""
        progress, prepared, config = self.progress, self.prepared, self.config
        where = progress.epoch, progress.step_in_epoch
        over = progress.step >= prepared.schedule.total_steps
        return RunFacts(
            position=Position(
                epoch=progress.epoch,
                step_in_epoch=progress.step_in_epoch,
                step=progress.step,
                next_samples=next_samples(config, prepared.store, prepared.plan, *where),
            ),
            losses=Losses(
                train=progress.train_loss,
                running=self.running.mean,
                probe=probe_loss(self.engine, self.probe),
                best_validation=self.early.best if self.early.best < float("inf") else None,
                validations_waited=self.early.waited,
            ),
            next_lrs={} if over else prepared.schedule.lrs(progress.step),
            seed=config.training.seed,
            precision=config.deepspeed.precision,
            config=json.loads(config.to_json()),
            config_digest=config.digest,
            data_digest=prepared.store.digest,
            scaling_digest=self.scaling_digest,
        )
