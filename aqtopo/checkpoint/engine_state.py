"""Looking into a DeepSpeed ZeRO-2 engine: its groups, parameters and counters, by name."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from aqtopo.checkpoint.files import FileRecord
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, RunFacts, TensorInfo, package_versions
from aqtopo.refusal import refuse

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_NOT_HYPERPARAMETERS = ("params", "name", "params_name")


def engine_groups(engine: Any, next_lrs: dict[str, float] | None = None) -> tuple[GroupInfo, ...]:
    """The optimizer's groups in order, with the parameters that DeepSpeed flattened, in its order."""
    zero = engine.optimizer
    return tuple(
        GroupInfo(
            name=group["name"],
            hyperparameters={k: _plain(v) for k, v in group.items() if k not in _NOT_HYPERPARAMETERS},
            next_lr=None if next_lrs is None else next_lrs.get(group["name"]),
            parameters=tuple(_tensor_info(zero.param_names[p], p) for p in parameters),
        )
        for group, parameters in zip(zero.optimizer.param_groups, zero.bit16_groups, strict=True)
    )


def describe_engine(engine: Any, tag: str, facts: RunFacts, files: dict[str, FileRecord]) -> Manifest:
    """The manifest of a state that this engine has just saved."""
    zero = engine.optimizer
    groups = engine_groups(engine, facts.next_lrs)
    trained = {tensor.name for group in groups for tensor in group.parameters}
    tied = tied_names(engine.module)
    return Manifest(
        schema=1,
        layout="sharded",
        tag=tag,
        run=facts,
        groups=groups,
        other_tensors=tuple(
            _tensor_info(name, tensor)
            for name, tensor in engine.module.state_dict().items()
            if name not in trained and name not in tied
        ),
        tied=tied,
        optimizer=type(zero.optimizer).__name__,
        optimizer_steps={group.name: optimizer_step(zero, index) for index, group in enumerate(groups)},
        zero_stage=engine.zero_optimization_stage(),
        world_size=engine.world_size,
        global_samples=engine.global_samples,
        skipped_steps=engine.skipped_steps,
        loss_scaler=scaler_state(engine) if facts.precision == "fp16" else None,
        versions=package_versions(),
        files=files,
    )


def optimizer_step(zero: Any, index: int) -> float:
    """Updates that the optimizer counts for a group."""
    state = zero.optimizer.state[zero.single_partition_of_fp32_groups[index]]
    return float(state["step"] if "step" in state else zero.optimizer.param_groups[index]["step"])


def tied_names(module: nn.Module) -> dict[str, str]:
    """Further names of a parameter that has several, with its first."""
    first: dict[int, str] = {}
    return {
        name: first[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def scaler_state(engine: Any) -> dict[str, float] | None:
    """State of a dynamic loss scaler; None for a static one, which has only what the configuration says."""
    scaler = engine.optimizer.loss_scaler
    if not all(hasattr(scaler, name) for name in SCALER_STATE):
        return None
    return {name: float(getattr(scaler, name)) for name in SCALER_STATE}


def owned_fragments(zero: Any, index: int) -> Iterator[tuple[str, Any, Any]]:
    """What this rank owns of a group, says DeepSpeed: name, place in the parameter, place in the part."""
    for parameter in zero.bit16_groups[index]:
        mapping = parameter._hp_mapping
        if mapping is not None:
            yield zero.param_names[parameter], mapping.lp_fragment_address, mapping.hp_fragment_address


def check_restorable(engine: Any) -> None:
    """Refuse engines whose state cannot be saved and restored by name.

    Raises:
        RefusedError: it names every reason.
    """
    zero, problems = engine.optimizer, []
    stage = engine.zero_optimization_stage()
    if stage not in (1, 2):
        problems.append(f"ZeRO stage {stage}: only stages 1 and 2 lay state out by name")
    optimizer = type(getattr(zero, "optimizer", zero)).__name__
    if "Adam" not in optimizer:
        problems.append(f"optimizer {optimizer}: only Adam's two moments can be restored")
    if getattr(zero, "round_robin_gradients", False):
        problems.append(
            "zero_optimization.round_robin_gradients: names would be linked to other tensors' elements"
        )
    for group in getattr(zero, "param_groups", []):
        if group.get("amsgrad"):
            problems.append(
                f"group {group.get('name')}: amsgrad's third moment is not in the universal layout"
            )
        if not group.get("name"):
            problems.append(
                "a parameter group without a name: groups are restored by name, never by position"
            )
    refuse("this engine cannot be saved and resumed by name", problems)


def _tensor_info(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def _plain(value: Any) -> Any:
    """A hyperparameter as JSON gives it back: tuples as lists, tensors as numbers."""
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value
