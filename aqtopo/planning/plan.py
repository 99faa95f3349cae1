"""Plan of a run: everything that its configuration determines before it starts."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aqtopo.config import RunConfig
from aqtopo.data.samples import SampleTable, StepPlan, calendar_times, sample_table
from aqtopo.model import Terrain, build_model
from aqtopo.planning.micro_step import ActivationBytes, MicroStepFlop, activation_bytes, count_flop
from aqtopo.planning.zero import StateBytes, reduction_bytes, state_bytes, workspace_bytes
from aqtopo.training.engine import group_parameters
from aqtopo.training.schedule import Schedule
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_VARIABLES


@dataclass(frozen=True)
class Calendar:
    """Samples, steps and validations of a run at its configured world size.

    Attributes:
        from_store: the hours are those of the store; otherwise all hours of the years are assumed.
        channels: hourly fields of the store; without a store, those of CAQRA and of the run.
        tables: samples of `train`, `validation` and `test`.
        validate_every: micro-steps between validations.
    """

    from_store: bool
    channels: int
    tables: dict[str, SampleTable]
    steps: StepPlan
    epochs: int
    validate_every: int

    @property
    def total_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.epochs * self.steps.steps_per_epoch

    def validations(self, epoch: int) -> dict[int, int]:
        """Return the validations of an epoch: the step by micro-step."""
        before = epoch * self.steps.steps_per_epoch
        due = self.steps.validation_steps(self.validate_every)
        return {micro_step: before + step for step, micro_step in due.items()}


@dataclass(frozen=True)
class GroupPlan:
    """Optimizer group: tensors, parameters, and learning rate at the epoch's first step."""

    tensors: int
    parameters: int
    lr: float


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes:
        epoch: epoch of the learning rates and validations, from 0.
        groups: by name, in the configured order.
        reduction: bytes of a rank's reduction buffers in the backward pass.
        workspace: estimated further bytes of the backward pass.
    """

    config: RunConfig
    epoch: int
    groups: dict[str, GroupPlan]
    calendar: Calendar
    state: StateBytes
    reduction: int
    activations: ActivationBytes
    workspace: int
    flop: MicroStepFlop

    @property
    def tensors(self) -> int:
        """Number of trainable tensors."""
        return sum(group.tensors for group in self.groups.values())

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(group.parameters for group in self.groups.values())

    @property
    def configured_activations(self) -> int:
        """Estimated activations with the run's gradient checkpointing setting [bytes]."""
        checkpointing = self.config.model.gradient_checkpointing
        return self.activations.checkpointed if checkpointing else self.activations.plain

    @property
    def peak(self) -> int:
        """Estimated maximum of a rank, early in the backward pass [bytes]."""
        return self.state.device + self.reduction + self.configured_activations + self.workspace

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        calendar, steps = self.calendar, self.calendar.steps
        return {
            "name": self.config.name,
            "epoch": self.epoch,
            "counted_in": "store" if calendar.from_store else "complete hourly calendar",
            "store": self.config.data.store,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "samples": {
                split: {"times": len(table.times), "entries": len(table)}
                for split, table in calendar.tables.items()
            },
            "world_size": self.config.world_size,
            "micro_batch": self.config.micro_batch,
            "accumulation": self.config.accumulation,
            "effective_batch": steps.train_batch,
            "micro_steps_per_epoch": steps.micro_steps_per_epoch,
            "steps_per_epoch": steps.steps_per_epoch,
            "epochs": calendar.epochs,
            "total_steps": calendar.total_steps,
            "first_step": self.epoch * steps.steps_per_epoch,
            "validations": [
                {"micro_step": micro_step, "step": step}
                for micro_step, step in calendar.validations(self.epoch).items()
            ],
            "bytes_per_rank": self.state.device,
            "state_bytes": asdict(self.state),
            "host_bytes_per_rank": self.state.host,
            "reduction_bytes": self.reduction,
            "activation_bytes_estimate": {
                "parts": self.activations.parts,
                "plain": self.activations.plain,
                "checkpointed": self.activations.checkpointed,
                "configured": self.configured_activations,
            },
            "workspace_bytes_estimate": self.workspace,
            "peak_bytes_estimate": self.peak,
            "flop_a_micro_step": {
                **self.flop.products,
                "attention": self.flop.attention,
                "float32_attention": self.flop.float32_attention,
                "forward": self.flop.forward,
                "backward": self.flop.backward,
            },
        }


def make_calendar(config: RunConfig) -> Calendar:
    """Count samples and steps of a run; the store is optional.

    Raises:
        ValueError: the store is unusable or does not fit, a split has no usable time, or an epoch is shorter
            than one micro-step.
    """
    from_store = Path(config.data.store).exists()
    data = config.data
    all_years = (*data.train_years, *data.validation_years, *data.test_years)
    if from_store:
        from aqtopo.data.metadata import check_fit, read_metadata  # loads zarr

        store = read_metadata(Path(data.store))
        check_fit(store, config)
        times, channels = store.times, store.hourly
    else:
        times = calendar_times(all_years)
        named = {*DYNAMIC_VARIABLES, *data.channels}
        channels = len(named - {*STATIC_VARIABLES})
    tables = {split: sample_table(config, times, split) for split in ("train", "validation", "test")}
    return Calendar(
        from_store,
        channels,
        tables,
        StepPlan.from_config(config, len(tables["train"])),
        config.training.epochs,
        config.training.validate_every,
    )


def make_plan(config: RunConfig, epoch: int = 0) -> Plan:
    """Plan a run, with learning rates and validations of an epoch, from 0; needs no data and no device.

    Raises:
        ValueError: the run has no such epoch, the schedule does not fit, or the store is unusable.
    """
    if not 0 <= epoch < config.training.epochs:
        raise ValueError(
            f"--at-epoch {epoch} is out of range: {config.name} has training.epochs = "
            f"{config.training.epochs}. Choose 0 to {config.training.epochs - 1}."
        )
    calendar = make_calendar(config)
    schedule = Schedule.from_config(config, calendar.steps.steps_per_epoch)
    lrs = schedule.lrs(epoch * calendar.steps.steps_per_epoch)
    with torch.device("meta"):
        model = build_model(config, Terrain.flat(config.data.grid))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    groups = {
        group: GroupPlan(len(names), sum(sizes[name] for name in names), lrs[group])
        for group, names in group_parameters(sizes, config).items()
    }
    elements = {name: group.parameters for name, group in groups.items()}
    return Plan(
        config,
        epoch,
        groups,
        calendar,
        state_bytes(elements, config),
        reduction_bytes(sum(elements.values()), config),
        activation_bytes(config),
        workspace_bytes(config),
        count_flop(config),
    )


def batch_note(config: RunConfig, before: RunConfig) -> str | None:
    """Return how to keep the samples per step of `before`, the same run on other ranks; None if it does."""
    if config.train_batch == before.train_batch:
        return None
    wanted, ranks = before.train_batch, config.micro_batch * config.world_size
    note = (
        f"A step has {config.train_batch:,} samples on {config.world_size} ranks; on the configured "
        f"{before.world_size} it has {wanted:,}."
    )
    if wanted % ranks:
        return f"{note} To keep them, choose ranks and a micro-batch whose product divides {wanted:,}."
    return f"{note} --set deepspeed.gradient_accumulation_steps={wanted // ranks} keeps them."
