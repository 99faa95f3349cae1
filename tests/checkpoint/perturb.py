"""Work of a test's ranks: change one value in a restored engine, on one rank, and verify the engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jobs import describe_toy, resume_one, start, toy_lrs

from aqtopo.checkpoint.changes import Allowed, match_names
from aqtopo.checkpoint.restore import read_weights, verify_engine
from aqtopo.checkpoint.universal import open_universal
from aqtopo.refusal import RefusedError

Change = tuple[Callable[[], Any], Callable[[Any], None]]
"""Functions that read and write a value."""


def tensor_element(tensor: torch.Tensor) -> Change:
    """The first element of a tensor."""
    flat = tensor.detach().view(-1)
    return lambda: flat[0].item(), lambda value: flat[:1].fill_(value)


def entry(owner: Any, key: str) -> Change:
    """A value under a key."""
    return lambda: owner[key], lambda value: owner.__setitem__(key, value)


def counter(owner: Any, name: str) -> Change:
    """An attribute."""
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def spoils(engine: Any) -> dict[str, tuple[Change, Any]]:
    """Return the values to change, by name, each with its wrong value."""
    zero, module = engine.optimizer, engine.module
    groups = {group["name"]: group for group in zero.param_groups}
    masters = dict(zip(groups, zero.single_partition_of_fp32_groups, strict=True))
    state = {name: zero.optimizer.state[master] for name, master in masters.items()}
    return {
        "master": (tensor_element(masters["early"]), 7.0),
        "exp_avg": (tensor_element(state["early"]["exp_avg"]), 7.0),
        "exp_avg_sq": (tensor_element(state["late"]["exp_avg_sq"]), 7.0),
        "step": (entry(state["late"], "step"), torch.tensor(4.0)),
        "lr": (entry(groups["early"], "lr"), groups["tiny"]["lr"]),
        "weight_decay": (entry(groups["late"], "weight_decay"), 0.0),
        "betas": (entry(groups["tiny"], "betas"), (0.9, 0.99)),
        "eps": (entry(groups["early"], "eps"), 1e-6),
        "weight in the module": (tensor_element(module.last.bias), 7.0),
        "frozen parameter": (tensor_element(module.frozen.weight), 7.0),
        "buffer": (tensor_element(module.norm.running_mean), 0.0),
        "global_steps": (counter(engine, "global_steps"), 6),
        "global_samples": (counter(engine, "global_samples"), 0),
    }


def perturb(source: str, out: str) -> None:
    """Resume, then spoil things one after the other on the last rank; what each rank heard of each."""
    ranks = start()
    engine = resume_one(Path(source), ranks, Allowed(), "fp32", {})
    state = open_universal(Path(source), ranks)
    names = match_names(state.manifest, *describe_toy(), Allowed())
    weights = read_weights(state.folder, ranks)
    heard, allowed = {}, Allowed(settings=("optimizer.weight_decay", "optimizer.base_lr"))

    def verify(may_differ: Allowed) -> str:
        rates = toy_lrs(state.manifest.run.position.step)
        try:
            return repr(verify_engine(engine, state, names, weights, rates, may_differ, ranks))
        except RefusedError as refusal:
            return str(refusal)

    for name, ((read, write), wrong) in spoils(engine).items():
        right = read()
        if ranks.rank == ranks.size - 1:
            write(wrong)
        heard[name], heard[f"{name}, allowed"] = verify(Allowed()), verify(allowed)
        write(right)
    heard["nothing"] = verify(Allowed())
    Path(out, f"heard{ranks.rank}.json").write_text(json.dumps(heard), encoding="utf-8")
