"""Where a run is: its steps so far, and its place in the order of its data, as a manifest predicts it."""

import hashlib
from dataclasses import dataclass

from aqtopo.checkpoint.manifest import NextSamples
from aqtopo.checkpoint.tags import Tag
from aqtopo.config import RunConfig
from aqtopo.data.samples import StepPlan, epoch_order, sample_table
from aqtopo.data.store import Store


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


def next_samples(
    config: RunConfig, store: Store, plan: StepPlan, epoch: int, step_in_epoch: int
) -> NextSamples | None:
    """The samples of the step that follows `step_in_epoch` steps of `epoch`; None after the last one.

    They are the same at every world size: start times and horizons, in the order in which they are dealt out.
    """
    if step_in_epoch >= plan.steps_per_epoch:
        epoch, step_in_epoch = epoch + 1, 0
    if epoch >= config.training.epochs:
        return None
    table = sample_table(config, store.times, "train")
    places = plan.step_places(step_in_epoch)
    samples = epoch_order(config.training.seed, epoch, len(table))[places.start : places.stop]
    times, leads = table.lookup(samples)
    digest = hashlib.sha256(times.astype("datetime64[h]").astype("<i8").tobytes())
    digest.update(leads.astype("<i8").tobytes())
    return NextSamples(epoch=epoch, step_in_epoch=step_in_epoch, count=len(places), sha256=digest.hexdigest())
