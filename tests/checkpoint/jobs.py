"""Work of a test's ranks: run the real program, or save and resume a toy model."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import fused_adam
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from aqtopo.checkpoint.changes import Allowed, match_names
from aqtopo.checkpoint.engine_state import check_restorable, engine_groups, scaler_state
from aqtopo.checkpoint.manifest import GroupInfo, Losses, Position, RunFacts, TensorInfo, read_manifest
from aqtopo.checkpoint.restore import (
    load_module,
    read_weights,
    restore_engine,
    restore_loss_scaler,
    verify_engine,
)
from aqtopo.checkpoint.save import Saver
from aqtopo.checkpoint.tags import Tag
from aqtopo.checkpoint.universal import open_universal, universal_folder
from aqtopo.cli.main import main
from aqtopo.config import CheckpointConfig
from aqtopo.distributed import process_group
from aqtopo.distributed.launch import read_launch
from aqtopo.distributed.process_group import TorchRanks, connect
from aqtopo.run_directory.batch_job import JOB_DIR, BatchJob
from aqtopo.training.engine import set_lrs

TOY_BATCH = 24
"""Samples a step over all ranks, for every world size of the tests."""


def aqtopo(arguments: list[str]) -> None:
    """The command line."""
    sys.argv = ["aqtopo", *arguments]
    main()


def aqtopo_started_again(arguments: list[str], job_dir: str, run_dir: str) -> None:
    """The command line in a batch job that has been queued again, after it had saved in a run directory."""
    Path(job_dir).mkdir()
    os.environ |= {JOB_DIR: job_dir, "SLURM_RESTART_COUNT": "1"}
    BatchJob.from_environment().note_save("any", Path(run_dir))
    aqtopo(arguments)


def aqtopo_told_to_stop(arguments: list[str], job_dir: str) -> None:
    """The command line in a batch job whose time limit is near."""
    Path(job_dir).mkdir()
    (Path(job_dir) / "stop").touch()
    os.environ[JOB_DIR] = job_dir
    aqtopo(arguments)


class Shifted(nn.Module):
    """A weight, a bias and a buffer, as BatchNorm has them, without statistics of the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (x - self.running_mean.to(x.dtype)) * self.weight + self.bias
        return result


class Toy(nn.Module):
    """A model with all that goes wrong: frozen, unused, tied, tiny, a buffer, and tensors of equal size."""

    def __init__(self, *, tied: bool = False, extra: bool = False, width: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.last = nn.Linear(width, 6)
        self.frozen = nn.Linear(width, width)
        self.unused = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = Shifted(width)
        if tied:
            self.third.weight = self.second.weight
        if extra:
            self.extra = nn.Parameter(torch.zeros(width))
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(self.norm(self.first(x))))
        x = self.third(torch.tanh(self.second(x))) + getattr(self, "extra", 0)
        result: Tensor = self.last(x) * self.scale
        return result


def groups_of(model: nn.Module, kind: str = "three") -> list[dict[str, Any]]:
    """Named groups: `tiny` holds one element, so that all ranks but the first own none of it."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tiny = {"scale": named.pop("scale")}
    early = {name: named.pop(name) for name in list(named) if name.startswith(("first", "norm"))}
    parts = {"early": (early, 1e-2), "tiny": (tiny, 3e-2), "late": (named, 5e-3)}
    order = {"three": ["early", "tiny", "late"], "reordered": ["late", "early", "tiny"]}[kind]
    return [{"name": n, "params": list(parts[n][0].values()), "lr": parts[n][1]} for n in order]


def toy_engine(
    world: int,
    *,
    groups: str = "three",
    precision: str = "fp32",
    tied: bool = False,
    extra: bool = False,
    width: int = 10,
    seed: int = 0,
    zero: dict[str, Any] | None = None,
    scaling: dict[str, Any] | None = None,
    amsgrad: bool = False,
    optimizer: str = "AdamW",
    universal: bool = False,
    state: tuple[Any, Any] | None = None,
) -> Any:
    """An engine around a toy model; `state` loads weights into it first."""
    torch.manual_seed(seed)
    model = Toy(tied=tied, extra=extra, width=width)
    if state is not None:
        load_module(model, *state)
    chosen = toy_optimizer(groups_of(model, groups), optimizer, amsgrad)
    block: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": TOY_BATCH // world,
        "zero_optimization": {"stage": 2} | (zero or {}),
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
    }
    if universal:
        block["checkpoint"] = {"load_universal": True}
    if precision != "fp32":
        block[precision] = {"enabled": True} | (scaling or {})
    if precision == "fp16":  # slow on a CPU, which is all that DeepSpeed has against it
        get_accelerator().is_fp16_supported = lambda: True
    engine, *_ = deepspeed.initialize(model=model, optimizer=chosen, config=block, dist_init_required=False)
    return engine


def toy_optimizer(groups: list[dict[str, Any]], name: str, amsgrad: bool) -> torch.optim.Optimizer:
    """PyTorch's or DeepSpeed's optimizer of that name."""
    if name == "DeepSpeedCPUAdam":
        found = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, weight_decay=0.1)
    elif name == "FusedAdam":
        with patch.object(fused_adam, "FusedAdamBuilder", FusedAdamOnCpu):
            found = deepspeed.ops.adam.FusedAdam(groups, weight_decay=0.1)
    elif name == "AdamW":
        found = torch.optim.AdamW(groups, weight_decay=0.1, amsgrad=amsgrad)
    else:
        found = getattr(torch.optim, name)(groups)
    assert isinstance(found, torch.optim.Optimizer)
    return found


class FusedAdamOnCpu:
    """In place of the compiled kernel, which needs a GPU; all that keeps the state is DeepSpeed's own."""

    def load(self) -> Any:
        return SimpleNamespace(multi_tensor_adam=self.multi_tensor_adam)

    @staticmethod
    def multi_tensor_adam(
        chunk: int,  # noqa: ARG004
        overflow: Tensor,  # noqa: ARG004
        lists: list[list[Tensor]],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        step: int,
        adam_w: int,
        bias_correction: int,
        decay: float,
    ) -> None:
        """Compute the kernel's update. Source: DeepSpeed 0.19.8, `csrc/adam/multi_tensor_adam.cu`."""
        assert adam_w
        assert bias_correction
        for gradient, weight, m, v in zip(*lists, strict=True):
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (v / (1 - beta2**step)).sqrt_().add_(eps)
            weight.data.sub_(lr * (m / (1 - beta1**step) / root + decay * weight))


def toy_lrs(step: int) -> dict[str, float]:
    """Rates of a step by group, no two alike."""
    return {name: lr * 0.97**step for name, lr in {"early": 1e-2, "tiny": 3e-2, "late": 5e-3}.items()}


def toy_steps(engine: Any, first: int, count: int, rank: int, world: int) -> list[float]:
    """Train; the losses over all ranks. The data are the same for every world size."""
    losses = []
    engine.train()
    for step in range(first, first + count):
        set_lrs(engine, toy_lrs(step))
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(2, TOY_BATCH, 6, generator=generator)
        mine = slice(rank * TOY_BATCH // world, (rank + 1) * TOY_BATCH // world)
        dtype = next(engine.module.parameters()).dtype
        loss = (engine(x[mine].to(dtype)).float() - y[mine]).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(process_group.total(loss.detach().double().clone())) / world)
    return losses


def full_state(engine: Any) -> dict[str, Tensor]:
    """Every tensor by name, read through DeepSpeed's own functions, which know nothing of ours."""
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()
    found = {f"module {name}": t.detach().clone() for name, t in engine.module.state_dict().items()}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            found[f"fp32 {name}"] = safe_get_full_fp32_param(parameter)
            for kind in ("exp_avg", "exp_avg_sq"):
                found[f"{kind} {name}"] = safe_get_full_optimizer_state(parameter, kind)
    for group in engine_groups(engine):
        index = [g["name"] for g in engine.optimizer.param_groups].index(group.name)
        master = engine.optimizer.single_partition_of_fp32_groups[index]
        found[f"step {group.name}"] = torch.tensor(float(engine.optimizer.optimizer.state[master]["step"]))
    return found


def toy_facts(step: int, precision: str = "fp32") -> RunFacts:
    return RunFacts(
        position=Position(epoch=0, step_in_epoch=step, step=step, next_samples=None),
        losses=Losses(train=1.0, running=1.0, probe=None, best_validation=None, validations_waited=0),
        next_lrs=toy_lrs(step),
        seed=0,
        precision=precision,
        config={},
        config_digest="toy",
        data_digest=None,
    )


def start() -> TorchRanks:
    launch = read_launch()
    return TorchRanks(launch.rank, launch.size, connect(launch))


def save_toy(
    folder: str,
    steps: int = 5,
    more: int = 4,
    precision: str = "fp32",
    **kind: Any,
) -> None:
    """Train `steps`, save, write down everything by name, and go on for `more` steps."""
    ranks = start()
    engine = toy_engine(ranks.size, precision=precision, **kind)
    with torch.no_grad():
        engine.module.norm.running_mean.fill_(0.25)  # a buffer that a fresh model does not have
    losses = toy_steps(engine, 0, steps, ranks.rank, ranks.size)
    tag = Tag(0, steps, steps, None, losses[-1])
    saver = Saver(Path(folder), CheckpointConfig(every_steps=1, keep_every_steps=1), ranks)
    tag = saver.save(engine, tag, toy_facts(steps, precision))
    truth, scaler = full_state(engine), scaler_state(engine)
    losses = toy_steps(engine, steps, more, ranks.rank, ranks.size)
    saver.finish()
    if ranks.rank == 0:
        found = {"state": truth, "losses": losses, "lrs": toy_lrs(steps), "scaler": scaler}
        torch.save(found, Path(folder) / "truth.pt")


def resume_toy(
    sources: dict[str, str],
    out: str,
    more: int = 4,
    allow: dict[str, Any] | None = None,
    precision: str = "fp32",
    **kind: Any,
) -> None:
    """Resume from each source in turn, verify, write down everything by name, and go on."""
    ranks = start()
    allowed = Allowed(**(allow or {}))
    results = {}
    for key, source in sources.items():
        engine = resume_one(Path(source), ranks, allowed, precision, kind)
        step = engine.global_steps
        result = {"state": full_state(engine), "step": step, "scale": engine.optimizer.loss_scale}
        result |= {"scaler": scaler_state(engine), "lrs": saved_lrs(Path(source))}
        result["losses"] = toy_steps(engine, step, more, ranks.rank, ranks.size)
        results[key] = result
        engine.destroy()
    if ranks.rank == 0:
        torch.save(results, out)


def saved_lrs(source: Path) -> dict[str, float | None]:
    """The next rates by group, as the universal form of a tag has them."""
    return {group.name: group.next_lr for group in read_manifest(universal_folder(source)).groups}


def resume_one(
    source: Path, ranks: TorchRanks, allowed: Allowed, precision: str, kind: dict[str, Any]
) -> Any:
    state = open_universal(source, ranks)
    names = match_names(state.manifest, *describe_toy(**kind), allowed)
    weights = read_weights(state.folder, ranks)
    engine = toy_engine(ranks.size, seed=1, precision=precision, state=(weights, names), **kind)
    check_restorable(engine)
    restore_engine(engine, state, names)
    if precision == "fp16":
        restore_loss_scaler(engine, state.manifest)
    set_lrs(engine, toy_lrs(engine.global_steps))
    verify_engine(engine, state, names, weights, toy_lrs(engine.global_steps), allowed, ranks)
    return engine


def describe_toy(
    groups: str = "three", tied: bool = False, extra: bool = False, width: int = 10, **_: Any
) -> tuple[tuple[GroupInfo, ...], tuple[TensorInfo, ...]]:
    """Groups and other tensors of a toy model, before there is an engine."""
    model = Toy(tied=tied, extra=extra, width=width)
    names = {id(p): name for name, p in model.named_parameters()}

    def info(name: str, tensor: Tensor) -> TensorInfo:
        return TensorInfo(name=name, shape=tuple(tensor.shape), dtype="float32")

    described = tuple(
        GroupInfo(
            name=group["name"],
            hyperparameters={},
            next_lr=None,
            parameters=tuple(info(names[id(p)], p) for p in group["params"]),
        )
        for group in groups_of(model, groups)
    )
    trained = {tensor.name for group in described for tensor in group.parameters}
    state, every = model.state_dict(), dict(model.named_parameters(remove_duplicate=False))
    others = [
        name for name in state if name not in trained and not every.get(name, state[name]).requires_grad
    ]
    return described, tuple(info(name, state[name]) for name in others)


def check_toy(**kind: Any) -> None:
    """Ask whether an engine can be saved and resumed; the refusal goes to the output."""
    ranks = start()
    check_restorable(toy_engine(ranks.size, **kind))


def load_with_deepspeed(source: str, out: str, **kind: Any) -> None:
    """Let DeepSpeed itself load a universal checkpoint."""
    ranks = start()
    universal = open_universal(Path(source), ranks).folder
    weights = read_weights(universal, ranks)
    names: dict[str, str | None] = {name: name for name in weights}
    engine = toy_engine(ranks.size, seed=1, state=(weights, names), universal=True, **kind)
    engine.load_checkpoint(str(universal.parent), tag=universal.name)
    state = full_state(engine)
    if ranks.rank == 0:
        torch.save(state, out)


def convert_with_deepspeed(source: str, out: str) -> None:
    """Let DeepSpeed itself convert a saved state."""
    import argparse

    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        argparse.Namespace(
            input_folder=source,
            output_folder=out,
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
