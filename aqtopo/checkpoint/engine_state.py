"""State of a DeepSpeed ZeRO-2 engine: description by name, module weights, and saved shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aqtopo.checkpoint.files import loadable_torch_files, write_error
from aqtopo.checkpoint.manifest import GroupInfo, Manifest, RunFacts, TensorInfo, package_versions
from aqtopo.refusal import raise_problems

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_NOT_HYPERPARAMETERS = ("params", "name", "params_name")


def engine_groups(engine: Any, next_lrs: dict[str, float] | None = None) -> tuple[GroupInfo, ...]:
    """Return the optimizer's groups; their parameters are in the order of the flat buffer."""
    zero = engine.optimizer
    return tuple(
        GroupInfo(
            name=group["name"],
            hyperparameters={k: as_json(v) for k, v in group.items() if k not in _NOT_HYPERPARAMETERS},
            next_lr=None if next_lrs is None else next_lrs.get(group["name"]),
            parameters=tuple(TensorInfo.of(zero.param_names[p], p) for p in parameters),
        )
        for group, parameters in zip(zero.optimizer.param_groups, zero.bit16_groups, strict=True)
    )


def describe_engine(engine: Any, tag: str, facts: RunFacts) -> Manifest:
    """Return the manifest of the engine's current state, without the records of its files."""
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
            TensorInfo.of(name, tensor)
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
    )


def optimizer_step(zero: Any, index: int) -> float:
    """Return the optimizer's step count of a group."""
    state = zero.optimizer.state[zero.single_partition_of_fp32_groups[index]]
    return float(state["step"] if "step" in state else zero.optimizer.param_groups[index]["step"])


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return the first name of a tied parameter by each of its other names."""
    first: dict[int, str] = {}
    return {
        name: first[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def scaler_state(engine: Any) -> dict[str, float] | None:
    """Return the state of a dynamic loss scaler; None for a static one."""
    scaler = engine.optimizer.loss_scaler
    if not all(hasattr(scaler, name) for name in SCALER_STATE):
        return None
    return {name: float(getattr(scaler, name)) for name in SCALER_STATE}


def owned_fragments(zero: Any, index: int) -> Iterator[tuple[str, Any, Any]]:
    """Yield this rank's fragments of a group from DeepSpeed's own links.

    A fragment is the parameter's name, the address in the parameter and the address in the rank's part.
    """
    for parameter in zero.bit16_groups[index]:
        mapping = parameter._hp_mapping
        if mapping is not None:
            yield zero.param_names[parameter], mapping.lp_fragment_address, mapping.hp_fragment_address


def check_restorable(engine: Any) -> None:
    """Check that the engine's state can be saved and restored by name.

    Raises:
        RefusedError: it cannot; the message names every reason.
    """
    zero, problems = engine.optimizer, []
    stage = engine.zero_optimization_stage()
    if stage not in (1, 2):
        problems.append(f"ZeRO stage {stage}: only stages 1 and 2 are supported")
    optimizer = type(getattr(zero, "optimizer", zero)).__name__
    if "Adam" not in optimizer:
        problems.append(f"optimizer {optimizer}: only Adam's two moments can be restored")
    if getattr(zero, "round_robin_gradients", False):
        problems.append(
            "zero_optimization.round_robin_gradients: DeepSpeed would link names to elements of other tensors"
        )
    for group in getattr(zero, "param_groups", []):
        if group.get("amsgrad"):
            problems.append(
                f"group {group.get('name')}: amsgrad's third moment is not in the universal layout"
            )
        if not group.get("name"):
            problems.append("a parameter group without a name: groups are restored by name")
    raise_problems("this engine cannot be saved and resumed by name", problems)


def as_json(value: Any) -> Any:
    """Return a hyperparameter as JSON stores it: tuples as lists, tensors as numbers."""
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def module_weights(engine: Any) -> dict[str, Tensor]:
    """Return the module's weights and persistent buffers by name, in fp32; all ZeRO-2 ranks hold them."""
    weights: dict[str, Tensor] = {}
    storages: set[tuple[int, int]] = set()
    for name, tensor in engine.module.state_dict().items():
        value = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().cpu()
        storage = value.data_ptr(), value.numel()
        # Tied weights share storage; safetensors requires separate storage for each name.
        weights[name] = value.clone() if storage in storages else value
        storages.add(storage)
    return weights


def write_shards(engine: Any, folder: Path) -> None:
    """Write this rank's shard with DeepSpeed, and on rank 0 the counters, without fsync.

    The engine must be at an accumulation boundary. DeepSpeed has barriers between and after the files, so
    errors are raised only after the last barrier.

    Raises:
        OSError: a file could not be written.
    """
    # DeepSpeed would add the module's weights to its pickles; they go into a safetensors file instead.
    extras: dict[str, Any] = {"module": {}, "universal_checkpoint_info": {}}
    with loadable_torch_files(), _deferred_write_errors(engine) as errors:
        engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state=extras, save_latest=False)
    if errors:
        raise OSError("; ".join(errors))


@contextmanager
def _deferred_write_errors(engine: Any) -> Iterator[list[str]]:
    """Collect the errors of DeepSpeed's writer, and disable the copying of its recovery scripts.

    Those scripts unpickle arbitrary globals, and only rank 0 copies them.
    """
    writer, errors = engine.checkpoint_engine, list[str]()
    save = writer.save

    def attempt(state_dict: Any, path: str) -> None:
        try:
            save(state_dict, path)
        except (OSError, RuntimeError) as error:
            errors.append(f"{Path(path).name}: {write_error(Path(path), error)}")

    assert callable(engine._copy_recovery_script)
    writer.save, engine._copy_recovery_script = attempt, lambda _: None
    try:
        yield errors
    finally:
        del writer.save, engine._copy_recovery_script
