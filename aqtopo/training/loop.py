"""The training loop: epochs of steps, and between them validation, saving, early stopping, orderly ends."""

import json
import signal
import time
from dataclasses import asdict, replace
from typing import Any

from aqtopo.checkpoint.engine_state import check_restorable
from aqtopo.checkpoint.manifest import Losses, Position, RunFacts
from aqtopo.checkpoint.retention import reading
from aqtopo.checkpoint.save import Saver
from aqtopo.checkpoint.tags import Tag, val_loss_in
from aqtopo.checkpoint.weights import scaling_digest
from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.loader import EvaluationLoader, TrainingLoader
from aqtopo.model import Terrain, build_model
from aqtopo.training import distributed
from aqtopo.training.engine import batch_fields, build_engine
from aqtopo.training.job import BatchJob
from aqtopo.training.launch import Launch
from aqtopo.training.position import Progress, next_samples
from aqtopo.training.preflight import check_up
from aqtopo.training.prepare import Prepared, prepare, prepare_again
from aqtopo.training.probe import probe_batch, probe_loss
from aqtopo.training.resume import Resumed, ResumeOptions, options_now, resume
from aqtopo.training.run_directory import (
    PATIENCE_S,
    claim_run_directory,
    hold_run_directory,
    take_over_run_directory,
)
from aqtopo.training.run_log import RunLog, peak_memory_gib
from aqtopo.training.running_loss import RunningLoss
from aqtopo.training.staging import staged
from aqtopo.training.step import StepResult, train_step
from aqtopo.training.stopping import EarlyStopping, Stop, StopRequests
from aqtopo.training.validation import validation_loss
from aqtopo.training.watchdog import Watchdog, watch_together


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
    job = BatchJob.from_environment()
    # One rank looks at the job's folder; the others hear of it in the step's reduction.
    stops = StopRequests((lambda: job.stop_requested) if launch.is_main else lambda: False)
    with stops.watching(signal.SIGUSR1):  # unwatched it kills, and it may come while the run still starts
        options = options_now(options, job.has_saved_in(config.training.run_dir))
        prepared = prepare(config, launch, options)
        with watch_together(launch, prepared.run_dir, config.world_size / launch.size) as watchdog:
            _train_together(prepared, job, stops, watchdog, stop_after)


def _train_together(
    prepared: Prepared, job: BatchJob, stops: StopRequests, watchdog: Watchdog, stop_after: int | None
) -> None:
    """What all ranks do, from joining to leaving the process group."""
    launch = prepared.launch
    watchdog.enter("connect")
    device = distributed.connect(launch, watchdog.longest_s)
    ranks = distributed.World(launch.rank, launch.size, device)
    watchdog.enter("preflight")
    check_up(prepared, device).demand_health(in_full=launch.is_main)
    log = RunLog(prepared.run_dir if launch.is_main else None, prepared.schedule.total_steps)
    try:
        watchdog.enter("lock")
        patience_s = PATIENCE_S if job.folder else 0.0
        with watchdog.telling(), hold_run_directory(prepared.run_dir, ranks, patience_s):
            held = prepare_again(prepared, ranks)
            with staged(held, watchdog, log) as store:
                run = _make_run(replace(held, store=store), ranks, log, job, stops, watchdog, stop_after)
                watchdog.before_giving_up(run.saver.abandon)
                # Only now is there something to save.
                with stops.watching(signal.SIGINT, signal.SIGTERM), run.saver, watchdog.telling():
                    run.execute()
    finally:
        log.close()
        distributed.disconnect()


def _make_run(
    prepared: Prepared,
    ranks: distributed.World,
    log: RunLog,
    job: BatchJob,
    stops: StopRequests,
    watchdog: Watchdog,
    stop_after: int | None,
) -> "_Run":
    """The engine, fresh or resumed and verified; only then is the run directory written to."""
    config, launch, store, device = prepared.config, prepared.launch, prepared.store, ranks.device
    model = build_model(config, Terrain(store.static["elevation"], store.lat))
    probe, resumed = probe_batch(store, config), None
    watchdog.enter("engine" if prepared.source is None else "resume")
    if prepared.source is None:
        engine = build_engine(config, model, launch.size, device)
        check_restorable(engine)  # not only when days of training are to be resumed
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
    run = _Run(prepared, engine, ranks, log, job, stops, watchdog, stop_after, probe)
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
        job: BatchJob,
        stops: StopRequests,
        watchdog: Watchdog,
        stop_after: int | None,
        probe: Batch,
    ) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.engine = engine
        self.ranks = ranks
        self.device = ranks.device
        self.log = log
        self.job = job
        self.stops = stops
        self.watchdog = watchdog
        self.stop_after = stop_after
        self.progress = Progress()
        self.early = EarlyStopping(self.config.training.patience)
        self.saver = Saver(prepared.run_dir, self.config.checkpoint, ranks, self._note_save)
        self.saved_step, self.first_step = -1, 0
        self.owes_validation = False
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
        self.first_step = position.step
        self.running.expected = losses.running
        if self.prepared.continues:
            self.saved_step = position.step
            due = position.step_in_epoch in self.validation_steps
            self.owes_validation = due and val_loss_in(resumed.manifest.tag) is None
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
        if self.ranks.rank == 0 and reason == Stop.RESTART.reason:
            self.job.ask_for_restart(f"saved at step {self.progress.step}")
        self.log.event("stop", step=self.progress.step, reason=reason, best=self.early.best_so_far)
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
            self.watchdog.enter("sanity validation")
            val_loss = validation_loss(self.engine, self.validation_batches, limit)
            self.log.say(f"sanity validation on {limit} batch(es) a rank: loss {val_loss:.4f}")
        self.log.event(
            "start",
            world_size=launch.size,
            **fields,
            total_steps=prepared.schedule.total_steps,
            slurm=self.job.facts,
        )

    def _train(self) -> str:
        """Run the epochs from where the run is; the reason for ending."""
        progress = self.progress
        if self.stop_after is not None and progress.step >= self.stop_after:
            return f"--stop-after {self.stop_after}: already there"
        if self.owes_validation and (reason := self._why_stop(self._validate(Stop.NO))):
            return reason
        for epoch in range(progress.epoch, self.config.training.epochs):
            if epoch != progress.epoch:
                progress.epoch, progress.step_in_epoch = epoch, 0
            first = progress.step_in_epoch
            steps = self.training_batches.steps(epoch, first)
            began = time.monotonic()
            self.watchdog.enter("data")
            for micro_batches in steps:
                stop = self._step(micro_batches, began).stop
                if self.progress.step_in_epoch in self.validation_steps:
                    stop = self._validate(stop)
                elif self._save_due():
                    self._save(None)
                if reason := self._why_stop(stop):
                    return reason
                began = time.monotonic()  # the next step's time begins with the wait for its data
                self.watchdog.enter("data")
        return "all epochs done"

    def _why_stop(self, stop: Stop) -> str | None:
        """The reason for ending here; None if there is none."""
        if stop is not Stop.NO:
            return stop.reason
        if self.stop_after is not None and self.progress.step >= self.stop_after:
            return f"--stop-after {self.stop_after}"
        if self.early.exhausted:
            return f"no better val_loss in {self.early.waited} validations"
        return None

    def _step(self, micro_batches: list[Batch], began: float) -> StepResult:
        """One update, and what the log says of it; `began` is when the wait for its data began [s]."""
        progress = self.progress
        lrs = self.prepared.schedule.lrs(progress.step)
        phase = "step" if progress.step > self.first_step else "first step"
        self.watchdog.enter(phase, str(progress.step + 1))
        result = train_step(
            self.engine,
            micro_batches,
            self.config,
            progress.epoch,
            progress.step + 1,
            lrs,
            self.stops.wanted,
            self.saver.failed,
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
        if result.save_failed:
            self.saver.finish()  # says why, on all ranks, instead of at the next save
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

    def _validate(self, stop: Stop) -> Stop:
        """Validate and save; where the ranks are to stop, which may come on the way, the next start does it.

        A validation may take longer than the time that is left. Takes and gives what the ranks agree on.
        """
        self.watchdog.enter("validation")
        val_loss = None
        if stop is Stop.NO:
            val_loss = validation_loss(
                self.engine,
                self.validation_batches,
                asked_to_stop=lambda: self.stops.agreed(self.device) is not Stop.NO,
            )
        stop = max(stop, self.stops.agreed(self.device))
        if val_loss is None:
            self.log.say(f"step {self.progress.step}: the next start validates, this one has to stop")
            return stop
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
        return stop

    def _save(self, val_loss: float | None) -> None:
        self.watchdog.enter("save")
        self.saver.save(self.engine, self.progress.tag(val_loss), self._facts())
        self.saved_step = self.progress.step

    def _note_save(self, tag: Tag) -> None:
        if tag.step > self.first_step:  # else this start has achieved nothing by it
            self.job.note_save(tag.name, self.prepared.run_dir)

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
                best_validation=self.early.best_so_far,
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
