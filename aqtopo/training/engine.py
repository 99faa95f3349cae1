"""DeepSpeed engine (ZeRO-2), its named optimizer groups, and the learnt parameters that the log reports.

Groups are identified by name, not by position; each parameter belongs to exactly one.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT
from aqtopo.model.attention import ALPHA

PREFERENCES: dict[str, tuple[str, Callable[[float], float]]] = {
    ".attn.locality.travel": ("travel [h]", lambda days: 24.0 * days),
    ".attn.locality.log_reach": ("width [patches]", math.exp),
}
"""Label and conversion to its unit of each per-head parameter, by the end of its name."""


def batch_fields(config: RunConfig, world_size: int) -> dict[str, int]:
    """Return the batch fields of the `deepspeed` block for the actual world size.

    The configured world size fixes the samples of a step; other world sizes change the accumulation and fill
    up with padding, which has weight 0.
    """
    accumulation = -(-config.train_batch // (world_size * config.micro_batch))
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": config.micro_batch * accumulation * world_size,
    }


def check_supported(config: RunConfig) -> None:
    """Check settings that DeepSpeed would reject only after the start of all ranks.

    Raises:
        ValueError: the device lacks the precision or the optimizer, or a monitor's package is missing.
    """
    on_gpu = os.environ.get("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu") == "cuda"
    if config.deepspeed.precision == "fp16" and not on_gpu:
        raise ValueError(
            "deepspeed.fp16.enabled = true needs a GPU, but this run uses the CPU. Use bf16 or fp32."
        )
    offload = config.deepspeed.zero_optimization.offload_optimizer
    if config.optimizer.implementation == "cpu_adam" and on_gpu and (not offload or offload.device != "cpu"):
        raise ValueError(
            'optimizer.implementation = "cpu_adam" steps in host memory, but the optimizer state is on the '
            'GPU. Set deepspeed.zero_optimization.offload_optimizer.device = "cpu", or use "fused_adam".'
        )
    for monitor in config.monitors.chosen:  # each has the name of its package
        if find_spec(monitor) is None:
            raise ValueError(
                f"monitors.{monitor} needs the package {monitor}, which is not installed. "
                f"Run `pip install {monitor}`, or leave the monitor out."
            )


def group_parameters(names: Iterable[str], config: RunConfig) -> dict[str, list[str]]:
    """Assign each parameter to the optimizer group whose patterns match its name.

    Args:
        names: the trainable parameters' names, in the model's order.
        config: the run; `optimizer.groups` holds the glob patterns.

    Returns:
        Parameter names by group, groups in the configured order, parameters in the model's order.

    Raises:
        ValueError: a parameter matches no group or several, or a pattern or a group matches nothing.
    """
    names = list(names)
    groups: dict[str, list[str]] = {group.name: [] for group in config.parameter_groups}
    problems = _unmatched_patterns(names, config)
    for name in names:
        owners = [
            group.name
            for group in config.parameter_groups
            if any(fnmatchcase(name, pattern) for pattern in group.parameters)
        ]
        if len(owners) == 1:
            groups[owners[0]].append(name)
        else:
            found = f"is in {len(owners)} groups ({', '.join(owners)})" if owners else "is in no group"
            problems.append(f"parameter {name} {found}")
    if problems:
        raise ValueError(
            f"optimizer.groups must match each of the model's {len(names)} parameters exactly once: "
            f"{'; '.join(problems[:8])}{' ...' if len(problems) > 8 else ''}. "
            "Change the patterns in optimizer.groups[*].parameters."
        )
    return groups


def _unmatched_patterns(names: list[str], config: RunConfig) -> list[str]:
    """Return a message for each pattern that matches no parameter, such as a typo."""
    return [
        f"optimizer.groups[{index}].parameters: {pattern!r} ({group.name}) matches no parameter"
        for index, group in enumerate(config.parameter_groups)
        for pattern in group.parameters
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def build_engine(config: RunConfig, model: AirQualityViT, world_size: int, device: torch.device) -> Any:
    """Wrap the model and its AdamW in a DeepSpeed engine.

    Args:
        config: the run.
        model: weights equal on all ranks.
        world_size: number of ranks.
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
    block = config.deepspeed.with_defaults() | batch_fields(config, world_size)
    engine, *_ = deepspeed.initialize(
        model=model.to(device), optimizer=optimizer, config=block, dist_init_required=False
    )
    return engine


def _optimizer_class(config: RunConfig) -> Callable[..., torch.optim.Optimizer]:
    """Return PyTorch's fused AdamW, or one that DeepSpeed compiles at its first use."""
    if config.optimizer.implementation == "torch":
        return partial(torch.optim.AdamW, fused=True)
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return DeepSpeedCPUAdam if config.optimizer.implementation == "cpu_adam" else FusedAdam  # type: ignore[no-any-return]


def optimizer_problem(implementation: str) -> str | None:
    """Compile and load the operation of a DeepSpeed optimizer; return the problem or None."""
    if implementation == "torch":
        return None
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
    from deepspeed.ops.op_builder.builder import MissingCUDAException

    builder = CPUAdamBuilder() if implementation == "cpu_adam" else FusedAdamBuilder()
    try:
        with redirect_stdout(sys.stderr):  # DeepSpeed prints warnings; `doctor --json` prints JSON
            builder.load()
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError, MissingCUDAException) as error:
        return (
            f'optimizer.implementation = "{implementation}" needs an operation that DeepSpeed compiles at '
            f"the start, which failed: {_cause(str(error))}. Install a C++ compiler, Python's headers and "
            "ninja (on Debian: apt-get install g++ python3-dev ninja-build), or set "
            'optimizer.implementation = "torch", with offload_optimizer also '
            "deepspeed.zero_force_ds_cpu_optimizer = false."
        )
    return None


def _cause(output: str) -> str:
    """Return the line of a failed build that names the cause, or its first line."""
    lines = output.strip().splitlines() or ["no message"]
    named = [line for line in lines if "error:" in line or "not found" in line or "No space" in line]
    return (named or lines)[0].strip().rstrip(".")


def _parameter_groups(config: RunConfig, model: AirQualityViT) -> list[dict[str, Any]]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return [
        {"name": group, "params": [parameters[name] for name in names]}
        for group, names in group_parameters(parameters, config).items()
    ]


def set_lrs(engine: Any, lrs: dict[str, float]) -> None:
    """Set the learning rate of each group by name."""
    groups = {group["name"]: group for group in engine.optimizer.param_groups}
    assert groups.keys() == lrs.keys(), f"engine has groups {sorted(groups)}, schedule {sorted(lrs)}"
    for name, lr in lrs.items():
        groups[name]["lr"] = lr


def barrier_strengths(engine: Any) -> dict[str, list[float]]:
    """Return alpha [km-1] by parameter name: one value, or one per head."""
    return _fp32_parameters(engine, (ALPHA,))


def preferences(engine: Any) -> dict[str, list[float]]:
    """Return the per-head parameters of each block, such as {"blocks.0 travel [h]": [0.0, 24.0]}."""
    return preferences_in_units(_fp32_parameters(engine, tuple(PREFERENCES)))


def preferences_in_units(parameters: dict[str, list[float]]) -> dict[str, list[float]]:
    """Label per-head parameters by block and quantity and convert them to its unit."""
    found = {}
    for name, values in parameters.items():
        ending = next(ending for ending in PREFERENCES if name.endswith(ending))
        label, convert = PREFERENCES[ending]
        found[f"{name.removesuffix(ending)} {label}"] = [convert(value) for value in values]
    return found


def _fp32_parameters(engine: Any, endings: tuple[str, ...]) -> dict[str, list[float]]:
    """Return the fp32 master weights of parameters by the end of their names; a collective.

    In bfloat16 the updates of a small learning rate would not be visible.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: safe_get_full_fp32_param(parameter).tolist()
        for name, parameter in engine.module.named_parameters()
        if name.endswith(endings)
    }
