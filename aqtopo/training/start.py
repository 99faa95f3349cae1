"""What a training process does from its start to its end: joining, checking up, going on, leaving."""

import signal
from dataclasses import replace

from aqtopo.checkpoint.engine_state import check_restorable
from aqtopo.checkpoint.retention import reading
from aqtopo.config import RunConfig
from aqtopo.distributed.launch import Launch
from aqtopo.distributed.watchdog import Watchdog, start_watchdog
from aqtopo.model import Terrain, build_model
from aqtopo.run_directory.batch_job import BatchJob
from aqtopo.run_directory.run_log import RunLog
from aqtopo.training import distributed
from aqtopo.training.claim import (
    PATIENCE_S,
    claim_run_directory,
    hold_run_directory,
    take_over_run_directory,
)
from aqtopo.training.engine import build_engine
from aqtopo.training.preflight import check_up
from aqtopo.training.prepare import Prepared, prepare, prepare_again
from aqtopo.training.probe import probe_batch
from aqtopo.training.resume import ResumeOptions, options_now, resume
from aqtopo.training.staging import staged
from aqtopo.training.stopping import StopRequests
from aqtopo.training.trainer import Controls, Run


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
        with start_watchdog(launch, prepared.run_dir, config.world_size / launch.size) as watchdog:
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
        with watchdog.reporting(), hold_run_directory(prepared.run_dir, ranks, patience_s):
            held = prepare_again(prepared, ranks)
            with staged(held, watchdog, log) as store:
                controls = Controls(log, job, stops, watchdog, stop_after)
                run = _make_run(replace(held, store=store), ranks, controls)
                watchdog.before_giving_up(run.saver.abandon)
                # Only now is there something to save.
                with stops.watching(signal.SIGINT, signal.SIGTERM), run.saver, watchdog.reporting():
                    run.execute()
    finally:
        log.close()
        distributed.disconnect()


def _make_run(prepared: Prepared, ranks: distributed.World, controls: Controls) -> Run:
    """The engine, fresh or resumed and verified; only then is the run directory written to."""
    config, launch, store, device = prepared.config, prepared.launch, prepared.store, ranks.device
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    probe, resumed = probe_batch(store, config), None
    controls.watchdog.enter("engine" if prepared.source is None else "resume")
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
    run = Run(prepared, engine, ranks, controls, probe)
    if resumed is not None:
        run.go_on_from(resumed)
    return run
