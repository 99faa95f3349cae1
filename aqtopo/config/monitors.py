"""Section `monitors`: programs that also get the values of `metrics.jsonl`."""

from typing import Annotated

from pydantic import Field

from aqtopo.config.strict import Strict

Text = Annotated[str, Field(min_length=1)]


class Wandb(Strict):
    """Weights & Biases; needs the package `wandb`. The run has the name and the resumes of this run."""

    project: Text = "aqtopo"
    """Project of the runs."""

    entity: str | None = None
    """Team or user that owns the project; null for your own."""

    group: str | None = None
    """Group of runs within the project."""


class MLflow(Strict):
    """MLflow; needs the package `mlflow` or `mlflow-skinny`. The run has the name and resumes of this run."""

    tracking_uri: Text | None = None
    """Address of a server, or a folder; null for the variable MLFLOW_TRACKING_URI or the folder `mlruns`."""

    experiment: Text = "aqtopo"
    """Experiment of the runs."""


class MonitorsConfig(Strict):
    """Programs that also get the values of `metrics.jsonl`, by step."""

    tensorboard: bool = False
    """Write TensorBoard's event files to the folder `tensorboard` of the run directory."""

    wandb: Wandb | None = None
    """Weights & Biases; null for none, {} for its defaults."""

    mlflow: MLflow | None = None
    """MLflow; null for none, {} for its defaults."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the monitors in use."""
        return tuple(name for name in MonitorsConfig.model_fields if getattr(self, name) not in (None, False))
