"""Trainer: epochs of steps with validation, saving, early stopping and stop requests."""

import errno
import json
import time
from typing import Any

from aqtopo.checkpoint.manifest import Losses, Manifest, Position, RunFacts
from aqtopo.checkpoint.save import Saver
from aqtopo.checkpoint.tags import Tag, how_to_continue, list_tags, val_loss_in
from aqtopo.data.batch import Batch
from aqtopo.data.statistics import scaling_digest
from aqtopo.distributed import process_group
from aqtopo.distributed.watchdog import Watchdog
from aqtopo.run_directory.batch_job import BatchJob
from aqtopo.run_directory.run_log import RunLog, peak_memory_gib
from aqtopo.training.engine import barrier_strengths, batch_fields, preferences
from aqtopo.training.prepare import Prepared
from aqtopo.training.resume import RunningLoss, data_changed, next_samples
from aqtopo.training.step import StepResult, loss_weights, train_step
from aqtopo.training.stopping import EarlyStopping, Stop, StopRequests
from aqtopo.training.validation import probe_loss, validation_loss

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a disk that is full or faulty, and of a quota."""


class Trainer:
    """Training loop of one rank, from the sanity validation to the last save.

    `stop_after` is the last step; None for the whole run.
    """

    def __init__(
        self,
        prepared: Prepared,
        engine: Any,
        ranks: process_group.TorchRanks,
        probe: Batch,
        log: RunLog,
        job: BatchJob,
        stops: StopRequests,
        watchdog: Watchdog,
        stop_after: int | None,
    ) -> None:
        self.prepared, self.config, self.engine = prepared, prepared.config, engine
        self.ranks, self.device, self.probe = ranks, ranks.device, probe
        self.log, self.job, self.stops, self.watchdog = log, job, stops, watchdog
        self.stop_after = stop_after
        self.epoch = self.step_in_epoch = self.step = 0
        self.train_loss, self.data = float("nan"), 0
        self.row_weights = loss_weights(self.config, prepared.store)
        self.early = EarlyStopping(self.config.training.patience)
        self.running = RunningLoss()
        self.saver = Saver(prepared.run_dir, self.config.checkpoint, ranks, self._note_save)
        self.saved_step, self.first_step = -1, 0
        self.validation_due = False
        self.scaling_digest = scaling_digest(self.config, prepared.store)
        self.validation_steps = prepared.plan.validation_steps(self.config.training.validate_every)
        self.training_batches, self.validation_batches = prepared.loaders()

    def restore(self, manifest: Manifest, event: dict[str, Any]) -> None:
        """Continue at the position of a saved state, and log the resume."""
        position, losses = manifest.run.position, manifest.run.losses
        self.epoch, self.step_in_epoch, self.step = position.epoch, position.step_in_epoch, position.step
        self.train_loss = float("nan") if losses.train is None else losses.train
        known = list_tags(self.prepared.run_dir)
        if data_changed(manifest, self.prepared):
            self.data = 1 + max((tag.data for tag in known), default=-1)
            self._report_reset(losses)
        else:
            self.data = next((tag.data for tag in known if tag.name == manifest.tag), 0)
            self.early.best = float("inf") if losses.best_validation is None else losses.best_validation
            self.early.waited = losses.validations_waited
        self.first_step = position.step
        self.running.saved = losses.running
        if self.prepared.continues:
            self.saved_step = position.step
            due = position.step_in_epoch in self.validation_steps
            self.validation_due = due and val_loss_in(manifest.tag) is None
        self.log.say(event["line"])
        self.log.event("resume", **event)

    def _report_reset(self, losses: Losses) -> None:
        """Log that validation losses of other data do not count."""
        best = "none" if losses.best_validation is None else f"{losses.best_validation:.4f}"
        self.log.say(
            f"the data are not those of the saved run: its best val_loss ({best}) and its "
            f"{losses.validations_waited} validations without a better one do not count"
        )
        self.log.event("validation_reset", step=self.step, saved_best=losses.best_validation)

    def run(self) -> None:
        """Train to the last step, a stop request or the end of patience, and save.

        Raises:
            OSError: a file cannot be written; the message names it, the step and the last complete state.
        """
        try:
            self._run()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise OSError(
                f"{error.filename or 'a file'} could not be written at step {self.step} ({error.strerror}). "
                f"{how_to_continue(self.prepared.run_dir)}"
            ) from error

    def _run(self) -> None:
        self._start()
        reason = self._train()
        if self.saved_step != self.step:
            self._save(None)
        self.saver.finish()
        if self.ranks.rank == 0 and reason == Stop.RESTART.reason:
            self.job.request_restart(f"saved at step {self.step}")
        best = self.early.best_so_far
        self.log.event("stop", step=self.step, reason=reason, best=best)
        said = "none" if best is None else f"{best:.4f}"
        self.log.say(f"stopped at step {self.step}: {reason}; best val_loss {said}")

    def _start(self) -> None:
        """Log the run, and run a short validation so that its errors show early."""
        prepared, size = self.prepared, self.ranks.size
        fields = batch_fields(self.config, size)
        self.log.say(
            f"{self.config.name}: {size} rank(s) on {self.device.type}, micro-batch "
            f"{fields['train_micro_batch_size_per_gpu']} x accumulation "
            f"{fields['gradient_accumulation_steps']}, {self.config.train_batch} samples per step, "
            f"{prepared.plan.steps_per_epoch} steps per epoch, {prepared.schedule.total_steps} in all"
        )
        self.log.say(f"attention: {self.engine.module.attention_backends(self.device)}")
        limit = self.config.training.sanity_micro_batches
        if limit:
            self.watchdog.enter("sanity validation")
            val_loss = validation_loss(self.engine, self.validation_batches, self.row_weights, limit)
            self.log.say(f"sanity validation on {limit} batch(es) per rank: loss {val_loss:.4f}")
        self.log.event(
            "start",
            step=self.step,
            alpha=barrier_strengths(self.engine),
            preferences=preferences(self.engine),
            world_size=size,
            **fields,
            total_steps=prepared.schedule.total_steps,
            slurm=self.job.facts,
        )

    def _train(self) -> str:
        """Run the remaining epochs; return the stop reason."""
        if self.stop_after is not None and self.step >= self.stop_after:
            return f"--stop-after {self.stop_after}: already reached"
        if self.validation_due and (reason := self._stop_reason(self._validate(Stop.NO))):
            return reason
        for epoch in range(self.epoch, self.config.training.epochs):
            if epoch != self.epoch:
                self.epoch, self.step_in_epoch = epoch, 0
            steps = self.training_batches.steps(epoch, self.step_in_epoch)
            began = time.monotonic()
            self.watchdog.enter("data")
            for micro_batches in steps:
                stop = self._step(micro_batches, began).stop
                if self.step_in_epoch in self.validation_steps:
                    stop = self._validate(stop)
                elif self._save_due():
                    self._save(None)
                if reason := self._stop_reason(stop):
                    return reason
                began = time.monotonic()  # the time of a step includes the wait for its data
                self.watchdog.enter("data")
        return "all epochs done"

    def _stop_reason(self, stop: Stop) -> str | None:
        """Return the reason to stop now; None to continue."""
        if stop is not Stop.NO:
            return stop.reason
        if self.stop_after is not None and self.step >= self.stop_after:
            return f"--stop-after {self.stop_after}"
        if self.early.exhausted:
            return f"no better val_loss in {self.early.waited} validations"
        return None

    def _step(self, micro_batches: list[Batch], began: float) -> StepResult:
        """Train one step and log it; its time counts from `began` [s]."""
        lrs = self.prepared.schedule.lrs(self.step)
        phase = "step" if self.step > self.first_step else "first step"
        self.watchdog.enter(phase, str(self.step + 1))
        result = train_step(
            self.engine,
            micro_batches,
            self.config,
            self.row_weights,
            self.epoch,
            self.step + 1,
            lrs,
            self.stops.requested,
            self.saver.failed,
        )
        self.step += 1
        self.step_in_epoch += 1
        self.train_loss = result.loss
        self.running.add(result.loss, self.step, self.log)
        if self.step % self.config.training.log_every == 0:
            self._log_step(result, lrs, time.monotonic() - began)
        if result.save_failed:
            self.saver.finish()  # raises the error of the save on all ranks
        return result

    def _log_step(self, result: StepResult, lrs: dict[str, float], seconds: float) -> None:
        self.log.event(
            "step",
            step=self.step,
            epoch=self.epoch,
            train_loss=result.loss,
            lr=lrs,
            grad_norm=result.grad_norm,
            samples_per_s=result.samples / seconds,
            memory_gib=peak_memory_gib(self.device),
            filled=result.filled,
        )
        self.log.progress(self.step, f"epoch {self.epoch}  loss {result.loss:.4f}")

    def _save_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return every is not None and self.step % every == 0

    def _validate(self, stop: Stop) -> Stop:
        """Validate and save; return the ranks' common stop request.

        With a stop request there may be too little time for a validation: the next start repeats it.
        """
        self.watchdog.enter("validation")
        val_loss = None
        if stop is Stop.NO:
            val_loss = validation_loss(
                self.engine,
                self.validation_batches,
                self.row_weights,
                stop_requested=lambda: self.stops.agreed(self.device) is not Stop.NO,
            )
        stop = max(stop, self.stops.agreed(self.device))
        if val_loss is None:
            self.log.say(f"step {self.step}: stop requested; the next start validates")
            return stop
        best = self.early.update(val_loss)
        self.log.event(
            "validation",
            step=self.step,
            epoch=self.epoch,
            val_loss=val_loss,
            best=best,
            alpha=barrier_strengths(self.engine),
            preferences=preferences(self.engine),
        )
        self.log.say(
            f"step {self.step}: val_loss {val_loss:.4f}{' (best)' if best else ''}, "
            f"train loss {self.train_loss:.4f}"
        )
        self._save(val_loss)
        return stop

    def _save(self, val_loss: float | None) -> None:
        self.watchdog.enter("save")
        place = self.epoch, self.step, self.step_in_epoch
        tag = Tag(*place, val_loss, self.train_loss, data=self.data)
        self.saver.save(self.engine, tag, self._facts())
        self.saved_step = self.step

    def _note_save(self, tag: Tag) -> None:
        if tag.step > self.first_step:  # the job counts only progress of this start
            self.job.note_save(tag.name, self.prepared.run_dir)

    def _facts(self) -> RunFacts:
        """Return the run's part of the manifest."""
        prepared, config, schedule = self.prepared, self.config, self.prepared.schedule
        place = self.epoch, self.step_in_epoch
        return RunFacts(
            position=Position(
                epoch=self.epoch,
                step_in_epoch=self.step_in_epoch,
                step=self.step,
                next_samples=next_samples(config, prepared.store, prepared.plan, *place),
            ),
            losses=Losses(
                train=self.train_loss,
                running=self.running.mean,
                probe=probe_loss(self.engine, self.probe),
                best_validation=self.early.best_so_far,
                validations_waited=self.early.waited,
            ),
            next_lrs={} if self.step >= schedule.total_steps else schedule.lrs(self.step),
            seed=config.training.seed,
            precision=config.deepspeed.precision,
            config=json.loads(config.to_json()),
            config_digest=config.digest,
            data_digest=prepared.store.digest,
            scaling_digest=self.scaling_digest,
        )
