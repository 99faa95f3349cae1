"""Jobs of test_step.py: steps with a non-finite loss or gradient, host reads, and summed gradients."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from jobs import full_state, start
from torch.utils._python_dispatch import TorchDispatchMode

from aqtopo.config import RunConfig, load_config
from aqtopo.data import open_store
from aqtopo.data.batch import Batch
from aqtopo.data.loader import TrainingLoader
from aqtopo.model import Terrain, build_model
from aqtopo.training.engine import build_engine
from aqtopo.training.step import NonFiniteLossError, StepResult, loss_weights, train_step
from aqtopo.training.stopping import Stop

PACKAGES = ("aqtopo", "aqtopo_kernels", "deepspeed")


class Steps:
    """Steps of one rank with the same micro-batches."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.ranks = config, start()
        get_accelerator().is_fp16_supported = lambda: True  # fp16 works on a CPU, but is slow
        store = open_store(config.data.store)
        model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
        self.engine = build_engine(config, model, self.ranks.size, self.ranks.device)
        self.row_weights = loss_weights(config, store)
        self.batches = next(TrainingLoader(store, config, self.ranks.rank, self.ranks.size).steps(0))
        self.count = 0

    def step(self, batches: Sequence[Batch] | None = None) -> StepResult:
        self.count += 1
        lrs = {group.name: 1e-3 for group in self.config.parameter_groups}
        given = self.batches if batches is None else batches
        return train_step(
            self.engine, given, self.config, self.row_weights, 0, self.count, lrs, Stop.NO, False
        )

    def with_target(self, value: float) -> list[Batch]:
        """Return the micro-batches; on rank 1, one valid target of the first one has this value."""
        batches = [batch.clone() for batch in self.batches]
        if self.ranks.rank == 1:
            place = batches[0].valid.nonzero()[0]
            batches[0].targets[tuple(place)] = value
        return batches


def spoil(steps: Steps, out: str) -> None:
    """Try bad steps between good ones; write down what they raised and which tensors they changed."""
    steps.step()
    attempts: dict[str, Callable[[], StepResult]] = {
        "infinite loss": lambda: steps.step(steps.with_target(2e19)),
        "loss not a number": lambda: steps.step(steps.with_target(float("nan"))),
        "infinite gradient": lambda: steps.step(),
        "no target": lambda: steps.step([masked(batch) for batch in steps.batches]),
    }
    found: dict[str, Any] = {}
    for name, attempt in attempts.items():
        good = steps.step().loss
        weight = steps.engine.module.norm.weight
        hook = weight.register_hook(lambda grad: grad / 0) if name == "infinite gradient" else None
        before, result, error = full_state(steps.engine), None, None
        try:
            result = attempt()
        except (NonFiniteLossError, ValueError) as raised:
            error = str(raised)
        if hook:
            hook.remove()
        after = full_state(steps.engine)
        changed = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
        found[name] = {"good": good, "error": error, "changed": changed, "step": steps.count}
        found[name]["norm"] = None if result is None else result.grad_norm
    torch.save(found, f"{out}.{steps.ranks.rank}")


def masked(batch: Batch) -> Batch:
    copy = batch.clone()
    copy.valid.fill_(False)
    return copy


def spoiled_steps(config: str, out: str) -> None:
    spoil(Steps(load_config(config)), out)


class HostReads(TorchDispatchMode):
    """Records the lines that read a tensor's value on the host. Such a read waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.readers.append(reader(sys._getframe()))
        return func(*args, **(kwargs or {}))


def reader(frame: Any) -> str:
    """Return the innermost line outside PyTorch, such as `deepspeed/runtime/utils.py:233`."""
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    package = next(folder for folder in path.parents if folder.name in PACKAGES)
    return f"{path.relative_to(package.parent)}:{frame.f_lineno}"


def host_reads(config: str, out: str) -> None:
    """List the lines that read values on the host in a step."""
    steps = Steps(load_config(config))
    steps.step()
    with HostReads() as reads:
        steps.step()
    if steps.ranks.rank == 0:
        Path(out).write_text("\n".join(reads.readers), encoding="utf-8")


def summed_gradients(config: str, out: str) -> None:
    """Add gradients of 256 and 0.5 in two micro-steps, with DeepSpeed's functions; bfloat16 gives 256."""
    steps = Steps(load_config(config))
    engine, weight = steps.engine, steps.engine.module.norm.weight
    for last, factor in ((False, 256.0), (True, 0.5)):
        engine.set_gradient_accumulation_boundary(last)
        engine.backward((factor * weight).sum(), scale_wrt_gas=False)
        if not last:
            engine.step()
    found = safe_get_full_grad(weight)
    if steps.ranks.rank == 0:
        torch.save({"gradient": found, "timer": engine.tput_timer.config.enabled}, out)
