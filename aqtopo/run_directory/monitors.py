"""Monitors: TensorBoard, Weights & Biases and MLflow get the values of `metrics.jsonl`, by step.

Names are those of the file, joined by `/`: `train_loss`, `lr/head`, `alpha/blocks.0.attn.alpha/0`. A resumed
run continues in the same run of each monitor.
"""

import hashlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from aqtopo.config import RunConfig
from aqtopo.config.monitors import MLflow, Wandb
from aqtopo.run_directory.run_file import RUN_FILE

TENSORBOARD = "tensorboard"
"""Folder of the run directory with TensorBoard's event files."""

RUN_TAG = "aqtopo.run"
"""MLflow tag by which a resumed run is found."""


class Monitor(ABC):
    """One monitor."""

    name: str
    errors: tuple[type[Exception], ...] = (OSError,)
    """Errors of its library, such as an unreachable server."""

    @abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one event."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Record the end of this start of the run."""


class Monitors:
    """All monitors of a run. One thread writes to them, so that a slow server does not delay a step.

    A monitor that fails gets no more values from this start of the run; `say` prints that.
    """

    def __init__(self, monitors: list[Monitor], say: Callable[[str], None]) -> None:
        self._monitors, self._say = monitors, say
        self._thread = ThreadPoolExecutor(1, "monitors")
        self._pending: deque[Future[None]] = deque()

    @classmethod
    def open(cls, config: RunConfig, run_dir: Path, step: int, say: Callable[[str], None]) -> "Monitors":
        """Open the monitors that the configuration names, for a run that has made `step` steps.

        Raises:
            ValueError: a monitor refuses its settings.
            ConnectionError: a server does not answer.
        """
        run_id = hashlib.sha256((run_dir / RUN_FILE).read_bytes()).hexdigest()[:16]
        chosen, monitors = config.monitors, list[Monitor]()
        if chosen.tensorboard:
            monitors.append(_TensorBoard(run_dir, step))
        if chosen.wandb is not None:
            monitors.append(_Wandb(chosen.wandb, config, run_dir, run_id))
        if chosen.mlflow is not None:
            monitors.append(_MLflow(chosen.mlflow, config.name, run_id))
        return cls(monitors, say)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Queue the numbers of an event of `metrics.jsonl` that has a step."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()  # raises what is no error of a monitor
        values = dict(numbers(facts))
        step = int(values.pop("step"))
        self._pending.append(self._thread.submit(self._on_all, f"step {step}", "write", step, values))

    def close(self, failed: bool) -> None:
        """Write what is queued and close the monitors."""
        self._pending.append(self._thread.submit(self._on_all, "the end", "close", failed))
        self._thread.shutdown()
        for pending in self._pending:
            pending.result()

    def _on_all(self, when: str, method: str, *arguments: Any) -> None:
        for monitor in tuple(self._monitors):
            try:
                getattr(monitor, method)(*arguments)
            except monitor.errors as error:
                self._monitors.remove(monitor)
                self._say(
                    f"WARNING: {monitor.name} failed at {when} and gets no more values before the next "
                    f"start; metrics.jsonl has them all: {error}"
                )


def numbers(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in an event with their names; entries of a list are counted from 0."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}/")
        elif isinstance(value, list):
            yield from numbers({str(place): entry for place, entry in enumerate(value)}, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def login_problems(config: RunConfig) -> list[str]:
    """Return the problem that Weights & Biases has no key for its server, if the run needs one."""
    if config.monitors.wandb is None:
        return []
    import wandb

    if wandb.setup().settings.mode != "online":
        return []
    fault = "there is no key"
    with suppress(wandb.errors.UsageError):
        try:
            if wandb.login(prompt=False, verify=False):
                return []
        except wandb.errors.AuthenticationError as error:
            fault = str(error)
    return [
        f"monitors.wandb: not logged in to Weights & Biases: {fault}. Run `wandb login`, set WANDB_API_KEY, "
        "or write locally with WANDB_MODE=offline (`wandb sync` sends it later)."
    ]


class _TensorBoard(Monitor):
    name = "tensorboard"

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run repeats the steps after the saved one: TensorBoard drops the values of the first time.
        self._writer = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:  # noqa: ARG002  (event files have no field for it)
        self._writer.close()


class _Wandb(Monitor):
    name = "wandb"

    def __init__(self, options: Wandb, config: RunConfig, run_dir: Path, run_id: str) -> None:
        import wandb

        self.errors = (OSError, wandb.Error)
        try:
            self._run = wandb.init(
                **options.model_dump(),
                name=config.name,
                id=run_id,
                resume="allow",
                dir=run_dir,
                config=json.loads(config.to_json()),
                settings=wandb.Settings(console="off", finish_timeout=60),  # by default it waits for ever
            )
        except wandb.errors.CommError as error:
            raise ConnectionError(f"monitors.wandb: Weights & Biases does not answer: {error}") from error
        except wandb.Error as error:
            raise ValueError(f"monitors.wandb cannot be used: {error}") from error
        # W&B's own counter only grows, but a resumed run repeats steps.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow(Monitor):
    name = "mlflow"

    def __init__(self, options: MLflow, name: str, run_id: str) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.7 refuses a folder without it
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default, 7, takes minutes
        import mlflow

        self.errors = (OSError, mlflow.MlflowException)
        uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "mlruns")
        try:
            self._client = mlflow.MlflowClient(uri)
            self._id = self._find_or_create(options.experiment, name, run_id)
        except mlflow.MlflowException as error:
            kind = ConnectionError if uri.startswith("http") else ValueError
            raise kind(f"monitors.mlflow: {uri} cannot be used: {error}") from error

    def _find_or_create(self, experiment: str, name: str, run_id: str) -> str:
        """Return MLflow's id of this run, in an experiment that is created if it is missing."""
        found = self._client.get_experiment_by_name(experiment)
        place = self._client.create_experiment(experiment) if found is None else found.experiment_id
        runs = self._client.search_runs([place], f"tags.`{RUN_TAG}` = '{run_id}'")
        if not runs:
            return str(self._client.create_run(place, run_name=name, tags={RUN_TAG: run_id}).info.run_id)
        self._client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # MLflow allows no brackets in names.
        metrics = [Metric(re.sub(r"[^\w.\- :/]", "", key), value, now, step) for key, value in values.items()]
        for first in range(0, len(metrics), 1000):  # its largest batch
            self._client.log_batch(self._id, metrics[first : first + 1000])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
