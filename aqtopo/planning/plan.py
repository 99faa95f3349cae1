"""The plan of a run: everything about it that can be known before it starts, from its configuration alone."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.planning.activations import ActivationBytes, activation_bytes
from aqtopo.planning.arithmetic import Arithmetic, count_arithmetic
from aqtopo.planning.calendar import Calendar, make_calendar
from aqtopo.planning.memory import StateBytes, reduction_bytes, state_bytes, workspace_bytes
from aqtopo.training.engine import group_parameters
from aqtopo.training.schedule import Schedule


@dataclass(frozen=True)
class Group:
    """One optimizer group: tensors, parameters in them, and the learning rate at the epoch's first step."""

    tensors: int
    parameters: int
    lr: float


@dataclass(frozen=True)
class Plan:
    """What a run will be.

    Attributes:
        config: the run.
        epoch: the epoch that learning rates and validations are given for, from 0.
        groups: by name, in the configured order.
        calendar: samples, steps and validations.
        state: lasting bytes of a rank.
        reduction: bytes of a rank's reduction buffers during the backward pass.
        activations: estimate of a micro-step's activations on a rank.
        workspace: estimate of what the backward pass needs beside them.
        arithmetic: FLOP of a micro-step.
    """

    config: RunConfig
    epoch: int
    groups: dict[str, Group]
    calendar: Calendar
    state: StateBytes
    reduction: int
    activations: ActivationBytes
    workspace: int
    arithmetic: Arithmetic

    @property
    def tensors(self) -> int:
        """Trainable tensors."""
        return sum(group.tensors for group in self.groups.values())

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(group.parameters for group in self.groups.values())

    @property
    def configured_activations(self) -> int:
        """Estimated activation bytes with gradient checkpointing as the run has it."""
        checkpointing = self.config.model.gradient_checkpointing
        return self.activations.checkpointed if checkpointing else self.activations.plain

    @property
    def peak(self) -> int:
        """Estimated bytes of a rank at most, early in its backward pass."""
        return self.state.device + self.reduction + self.configured_activations + self.workspace

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data; bytes, counts and rates are numbers."""
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
                **self.arithmetic.products,
                "attention": self.arithmetic.attention,
                "float32_attention": self.arithmetic.float32_attention,
                "forward": self.arithmetic.forward,
                "backward": self.arithmetic.backward,
            },
        }


def make_plan(config: RunConfig, epoch: int = 0) -> Plan:
    """Plan a run; needs neither data nor a device.

    Args:
        config: the run.
        epoch: the epoch to give learning rates and validations for, from 0.

    Raises:
        ValueError: the run has no such epoch, the schedule does not fit the run, or the store is there but
            cannot be used.
    """
    if not 0 <= epoch < config.training.epochs:
        raise ValueError(
            f"--at-epoch {epoch}: {config.name} has training.epochs = {config.training.epochs}, counted from "
            f"0. Choose 0 to {config.training.epochs - 1}."
        )
    calendar = make_calendar(config)
    schedule = Schedule.from_config(config, calendar.steps.steps_per_epoch)
    lrs = schedule.lrs(epoch * calendar.steps.steps_per_epoch)
    model = _shapes_only(config)
    groups = {
        name: Group(len(counts), sum(counts), lrs[name])
        for name, counts in _parameter_counts(model, config).items()
    }
    elements = {name: group.parameters for name, group in groups.items()}
    return Plan(
        config,
        epoch,
        groups,
        calendar,
        state_bytes(elements, config),
        reduction_bytes(sum(elements.values()), config),
        activation_bytes(model, config),
        workspace_bytes(config),
        count_arithmetic(model, config),
    )


def _shapes_only(config: RunConfig) -> AirQualityViT:
    """The model without memory behind its tensors."""
    with torch.device("meta"):
        return build_model(config, Terrain.flat(config.data.grid))


def _parameter_counts(model: AirQualityViT, config: RunConfig) -> dict[str, list[int]]:
    """Elements of each tensor by group."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {
        group: [sizes[name] for name in names] for group, names in group_parameters(sizes, config).items()
    }
