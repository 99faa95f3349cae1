"""Course of a run: join the process group, check, resume or build the engine, train, leave."""

import signal
from dataclasses import replace

from aqtopo.checkpoint.engine_state import check_restorable
from aqtopo.checkpoint.tags import read_lock
from aqtopo.config import RunConfig
from aqtopo.distributed import process_group
from aqtopo.distributed.launch import Launch, restored_environment
from aqtopo.distributed.watchdog import Watchdog, start_watchdog
from aqtopo.model import Terrain, build_model
from aqtopo.run_directory.batch_job import BatchJob
from aqtopo.run_directory.monitors import Monitors
from aqtopo.run_directory.run_log import RunLog
from aqtopo.training.engine import build_engine
from aqtopo.training.initial_weights import initial_weights
from aqtopo.training.preflight import check_up
from aqtopo.training.prepare import (
    LOCK_TIMEOUT_S,
    NEVER,
    Prepared,
    ResumeOptions,
    claim_run_directory,
    lock_run_directory,
    prepare,
    prepare_again,
    reclaim_run_directory,
)
from aqtopo.training.resume import resume
from aqtopo.training.staging import staged
from aqtopo.training.stopping import StopRequests
from aqtopo.training.trainer import Trainer
from aqtopo.training.validation import probe_batch


def train(
    config: RunConfig,
    launch: Launch,
    stop_after: int | None = None,
    options: ResumeOptions | None = None,
) -> None:
    """Train a model as one of `launch.size` processes.

    The run stops after the step `stop_after`, if it is given. Without `options` it always starts fresh.

    Raises:
        ValueError: the input is invalid; nothing is written.
        RefusedError: the saved state cannot be resumed as requested; nothing is written.
        NonFiniteLossError: the loss is not finite.
    """
    job = BatchJob.from_environment()
    # Rank 0 reads the job's folder; the all-reduce of each step tells the others.
    stops = StopRequests((lambda: job.stop_requested) if launch.is_main else lambda: False)
    with restored_environment(), stops.recording(signal.SIGUSR1):  # its default action ends the process
        if job.has_saved_in(config.training.run_dir):
            options = ResumeOptions()  # --resume is for the job's first start
        prepared = prepare(config, launch, options or ResumeOptions(NEVER))
        with start_watchdog(launch, prepared.run_dir, config.world_size / launch.size) as watchdog:
            _train_on_all_ranks(prepared, job, stops, watchdog, stop_after)


def _train_on_all_ranks(
    prepared: Prepared, job: BatchJob, stops: StopRequests, watchdog: Watchdog, stop_after: int | None
) -> None:
    """Join the process group, train and leave it."""
    launch = prepared.launch
    watchdog.enter("connect")
    device = process_group.connect(launch, watchdog.longest_s)
    ranks = process_group.TorchRanks(launch.rank, launch.size, device)
    watchdog.enter("preflight")
    check_up(prepared, device).raise_problems(in_full=launch.is_main)
    log = RunLog(prepared.run_dir if launch.is_main else None, prepared.schedule.total_steps)
    try:
        watchdog.enter("lock")
        timeout_s = LOCK_TIMEOUT_S if job.folder else 0.0
        with watchdog.reporting(), lock_run_directory(prepared.run_dir, ranks, timeout_s):
            prepared = prepare_again(prepared, ranks)
            with staged(prepared, job, watchdog, log) as store:
                prepared = replace(prepared, store=store)
                trainer = _build_trainer(prepared, ranks, log, job, stops, watchdog, stop_after)
                watchdog.on_abort(trainer.saver.abandon)
                # Until here there is nothing to save, so these signals end the process.
                with stops.recording(signal.SIGINT, signal.SIGTERM), trainer.saver, watchdog.reporting():
                    trainer.run()
    finally:
        log.close()
        process_group.disconnect()


def _build_trainer(
    prepared: Prepared,
    ranks: process_group.TorchRanks,
    log: RunLog,
    job: BatchJob,
    stops: StopRequests,
    watchdog: Watchdog,
    stop_after: int | None,
) -> Trainer:
    """Build the engine or resume a saved state; then claim the run directory."""
    config, launch, store, device = prepared.config, prepared.launch, prepared.store, ranks.device
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    probe = probe_batch(store, config)
    manifest = None
    watchdog.enter("engine" if prepared.source is None else "resume")
    initial = None
    if prepared.source is None:
        if config.training.initial_weights is not None:
            initial = initial_weights(config, model)
            model.load_state_dict(initial.state)
        engine = build_engine(config, model, launch.size, device)
        check_restorable(engine)  # fails at the start, not at the first resume
    else:
        with read_lock(prepared.source):  # its own run may prune it
            engine, manifest, event = resume(prepared, model, probe, ranks, device)
    if launch.is_main and prepared.continues:
        reclaim_run_directory(prepared.run_dir, config)
    elif launch.is_main:
        claim_run_directory(prepared.run_dir, config, launch, device)
    if launch.is_main and config.monitors.chosen:
        step = 0 if manifest is None else manifest.run.position.step
        log.monitors = Monitors.open(config, prepared.run_dir, step, log.say)
    trainer = Trainer(prepared, engine, ranks, probe, log, job, stops, watchdog, stop_after)
    if manifest is not None:
        trainer.restore(manifest, event)
    if initial is not None:
        log.say(initial.line(str(config.training.initial_weights)))
        log.event("initial_weights", **initial.facts(str(config.training.initial_weights)))
    return trainer
