"""The DeepSpeed engine: ZeRO-2 around the model, with named groups and batch fields for the actual world."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT
from aqtopo.training.groups import group_parameters


def batch_fields(config: RunConfig, world_size: int) -> dict[str, int]:
    """The batch fields of the `deepspeed` block for the world that is really there.

    The number of samples in a step is fixed by the configured world; with other ranks the accumulation
    follows, and surplus places hold samples of weight 0.
    """
    accumulation = -(-config.train_batch // (world_size * config.micro_batch))
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": config.micro_batch * accumulation * world_size,
    }


def check_supported(config: RunConfig) -> None:
    """Refuse what DeepSpeed would only refuse once all ranks are running.

    Raises:
        ValueError: a precision this device lacks, or a monitor whose package is missing.
    """
    on_gpu = os.environ.get("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu") == "cuda"
    if config.deepspeed.precision == "fp16" and not on_gpu:
        raise ValueError(
            "deepspeed.fp16.enabled = true needs a GPU, and this run is on a CPU: use bf16, or neither."
        )
    offload = config.deepspeed.zero_optimization.offload_optimizer
    if config.optimizer.implementation == "cpu_adam" and on_gpu and (not offload or offload.device != "cpu"):
        raise ValueError(
            'optimizer.implementation = "cpu_adam" steps in host memory, and this run keeps its state on the '
            'GPU: set deepspeed.zero_optimization.offload_optimizer.device = "cpu", or use "fused_adam".'
        )
    for monitor, package in {"tensorboard": "tensorboard", "wandb": "wandb"}.items():
        if getattr(config.deepspeed, monitor).enabled and find_spec(package) is None:
            raise ValueError(
                f"deepspeed.{monitor}.enabled = true needs the package {package}, which is not installed: "
                f"`pip install {package}`, or switch the monitor off."
            )


def build_engine(config: RunConfig, model: AirQualityViT, world_size: int, device: torch.device) -> Any:
    """Hand the model and its AdamW to DeepSpeed.

    Args:
        config: the run.
        model: weights equal on all ranks.
        world_size: ranks that take part.
        device: this rank's device.

    Returns:
        A `deepspeed.DeepSpeedEngine` (untyped: DeepSpeed ships no types).
    """
    import deepspeed

    optimizer = _optimizer_class(config)(
        _parameter_groups(config, model),
        lr=config.optimizer.base_lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
    )
    block = config.deepspeed.verbatim() | batch_fields(config, world_size)
    engine, *_ = deepspeed.initialize(
        model=model.to(device), optimizer=optimizer, config=block, dist_init_required=False
    )
    return engine


def _optimizer_class(config: RunConfig) -> Callable[..., torch.optim.Optimizer]:
    """AdamW as PyTorch has it, or as DeepSpeed compiles it when it is first made."""
    if config.optimizer.implementation == "torch":
        return torch.optim.AdamW
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return DeepSpeedCPUAdam if config.optimizer.implementation == "cpu_adam" else FusedAdam  # type: ignore[no-any-return]


def _parameter_groups(config: RunConfig, model: AirQualityViT) -> list[dict[str, Any]]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [
        {"name": group, "params": [parameters[name] for name in names]}
        for group, names in group_parameters(parameters, config).items()
    ]


def set_lrs(engine: Any, lrs: dict[str, float]) -> None:
    """Set the rate of every group, by name."""
    groups = {group["name"]: group for group in engine.optimizer.param_groups}
    assert groups.keys() == lrs.keys(), f"engine has groups {sorted(groups)}, schedule {sorted(lrs)}"
    for name, lr in lrs.items():
        groups[name]["lr"] = lr
