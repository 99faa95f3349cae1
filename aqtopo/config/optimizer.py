"""Sections of a configuration about the optimizer: groups, AdamW and the learning rate over time."""

from typing import Annotated, Literal

from pydantic import Field

from aqtopo.config.strict import NonNegative, Probability, Strict

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class ParameterGroup(Strict):
    """Parameters that share a learning rate."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name in logs and checkpoints: lower-case letters, digits and underscore."""

    lr_multiplier: float = Field(gt=0)
    """The group's learning rate, as a multiple of `optimizer.base_lr`."""

    parameters: Names
    """Glob patterns over parameter names; all groups together must match each parameter exactly once."""


DEFAULT_GROUPS = (
    ParameterGroup(name="vit_blocks", lr_multiplier=0.1, parameters=("blocks.*",)),
    ParameterGroup(name="wind_embedding", lr_multiplier=2.0, parameters=("token_embeds.*",)),
    ParameterGroup(name="head", lr_multiplier=0.5, parameters=("head.*",)),
    ParameterGroup(
        name="others",
        lr_multiplier=1.0,
        parameters=("var_embed", "var_query", "pos_embed", "var_agg.*", "lead_time_embed.*", "norm.*"),
    ),
)
"""The four groups of the reference run, in the order in which their learning rates are reported."""

LOCAL_PATH_GROUP = ParameterGroup(name="local_path", lr_multiplier=1.0, parameters=("local_path.*",))
"""The group that a run with `model.local_path` has in addition, unless it names a group local_path itself."""


class OptimizerConfig(Strict):
    """AdamW and its parameter groups."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""

    implementation: Literal["torch", "cpu_adam", "fused_adam"] = "torch"
    """PyTorch's fused AdamW, or DeepSpeed's: `cpu_adam` for offloaded state, `fused_adam` for the GPU."""

    base_lr: float = Field(gt=0)
    """Learning rate after warm-up for a group of multiplier 1."""

    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, per step and unit of learning rate."""

    betas: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.9, 0.999)
    """Decay of the first and second moments per step."""

    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""

    groups: Annotated[tuple[ParameterGroup, ...], Field(min_length=1, strict=False)] = DEFAULT_GROUPS
    """Parameter groups, in the order in which they are reported."""


class ScheduleConfig(Strict):
    """Linear warm-up, then a cosine to `eta_min` at the run's end: a pure function of the step."""

    interval: Literal["epoch", "step"] = "epoch"
    """Unit in which the learning rate changes: epoch or step."""

    warmup_steps: NonNegative = 0
    """Steps of linear warm-up; must be 0 with interval epoch."""

    eta_min: float = Field(0.0, ge=0)
    """Learning rate at the end, the same for all groups."""
