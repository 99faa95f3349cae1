"""A run in one process: epochs of steps; between them validation, saving, early stopping, orderly ends."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from aqtopo.checkpoint.manifest import Losses, Position, RunFacts
from aqtopo.checkpoint.save import Saver
from aqtopo.checkpoint.tags import Tag, val_loss_in
from aqtopo.checkpoint.weights import scaling_digest
from aqtopo.data.batch import Batch
from aqtopo.data.loader import EvaluationLoader, TrainingLoader
from aqtopo.distributed.watchdog import Watchdog
from aqtopo.run_directory.batch_job import BatchJob
from aqtopo.run_directory.run_log import RunLog, peak_memory_gib
from aqtopo.training import distributed
from aqtopo.training.barriers import barrier_strengths, preferences
from aqtopo.training.engine import batch_fields
from aqtopo.training.position import Progress, next_samples
from aqtopo.training.prepare import Prepared
from aqtopo.training.probe import probe_loss
from aqtopo.training.resume import Resumed
from aqtopo.training.running_loss import RunningLoss
from aqtopo.training.step import StepResult, train_step
from aqtopo.training.stopping import EarlyStopping, Stop, StopRequests
from aqtopo.training.validation import validation_loss


@dataclass(frozen=True)
class Controls:
    """What a run is told by, watched by and ended by.

    Attributes:
        log: where its events go.
        job: the batch job that it is part of, if it is.
        stops: requests to stop, by signal or file.
        watchdog: knows the phases' deadlines.
        stop_after: end after this many steps; None for the whole run.
    """

    log: RunLog
    job: BatchJob
    stops: StopRequests
    watchdog: Watchdog
    stop_after: int | None


class Run:
    """One process's part in a run, from the sanity validation to the last save."""

    def __init__(
        self,
        prepared: Prepared,
        engine: Any,
        ranks: distributed.World,
        controls: Controls,
        probe: Batch,
    ) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.engine = engine
        self.ranks = ranks
        self.device = ranks.device
        self.log, self.watchdog = controls.log, controls.watchdog
        self.controls = controls
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
            self.controls.job.ask_for_restart(f"saved at step {self.progress.step}")
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
            step=self.progress.step,
            alpha=barrier_strengths(self.engine),
            preferences=preferences(self.engine),
            world_size=launch.size,
            **fields,
            total_steps=prepared.schedule.total_steps,
            slurm=self.controls.job.facts,
        )

    def _train(self) -> str:
        """Run the epochs from where the run is; the reason for ending."""
        progress = self.progress
        if self.controls.stop_after is not None and progress.step >= self.controls.stop_after:
            return f"--stop-after {self.controls.stop_after}: already there"
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
        if self.controls.stop_after is not None and self.progress.step >= self.controls.stop_after:
            return f"--stop-after {self.controls.stop_after}"
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
            self.controls.stops.wanted,
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
        norm = {} if result.grad_norm is None else {"Train/grad_norm": result.grad_norm}
        self._monitor({"Train/loss": result.loss} | norm)
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
                asked_to_stop=lambda: self.controls.stops.agreed(self.device) is not Stop.NO,
            )
        stop = max(stop, self.controls.stops.agreed(self.device))
        if val_loss is None:
            self.log.say(f"step {self.progress.step}: the next start validates, this one has to stop")
            return stop
        best = self.early.update(val_loss)
        self.log.event(
            "validation",
            step=self.progress.step,
            epoch=self.progress.epoch,
            val_loss=val_loss,
            best=best,
            alpha=barrier_strengths(self.engine),
            preferences=preferences(self.engine),
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
            self.controls.job.note_save(tag.name, self.prepared.run_dir)

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
