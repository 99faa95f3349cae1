"""What is checked and found out about a run before any process talks to another or writes a file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from aqtopo.checkpoint.ranks import Ranks, refuse_together
from aqtopo.config import RunConfig
from aqtopo.data.check import check_store
from aqtopo.data.samples import StepPlan, sample_table
from aqtopo.data.store import Store, open_store
from aqtopo.distributed.launch import Launch
from aqtopo.model import Terrain, build_model
from aqtopo.refusal import RefusedError
from aqtopo.training.claim import check_run_directory
from aqtopo.training.engine import check_supported
from aqtopo.training.groups import group_parameters
from aqtopo.training.resume import NEVER, ResumeOptions, check_source, find_source, is_own
from aqtopo.training.schedule import Schedule


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
    parameters: int
    """Elements of the model's weights."""

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
    _check_claim(source, run_dir, config, options)
    store = open_store(config.data.store, config.data.read_deadline_s)
    check_store(store, config)
    check_supported(config)
    with torch.device("meta"):  # names and shapes are enough to find what is wrong with groups or terrain
        model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
    group_parameters(elements, config)
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
    return Prepared(config, launch, run_dir, store, plan, schedule, options, source, sum(elements.values()))


def prepare_again(prepared: Prepared, ranks: Ranks) -> Prepared:
    """Look again, now that the run directory is held, for what another run may have done there in between.

    Raises:
        RefusedError: on all ranks: the directory has become another run's, or ranks see different states.
    """
    found, problems = None, []
    try:
        found = find_source(prepared.run_dir, prepared.options.source)
        _check_claim(found, prepared.run_dir, prepared.config, prepared.options)
    except (RefusedError, ValueError) as error:
        problems = [str(error)]
    what = f"{prepared.run_dir} has changed since this run began"
    refuse_together(ranks, what, problems)
    seen = sorted(set(ranks.gather_texts(str(found))))
    refuse_together(ranks, what, [f"ranks see different states: {', '.join(seen)}"] if seen[1:] else [])
    if found == prepared.source:
        return prepared
    return prepare(prepared.config, prepared.launch, prepared.options)


def _check_claim(source: Path | None, run_dir: Path, config: RunConfig, options: ResumeOptions) -> None:
    """Make sure that a run which does not go on in its own directory may have it."""
    if source is None or not is_own(source, run_dir):
        check_run_directory(run_dir, config, start_over=options.source != NEVER)
