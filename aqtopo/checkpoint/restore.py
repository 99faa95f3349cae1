"""Putting a saved state into a fresh run, by name: weights into the module, the rest into ZeRO's parts.

Each rank reads the elements it owns and no others, straight from the universal layout. DeepSpeed's own loader
goes by the position of groups, lets the checkpoint overrule the configuration, and fails where a rank owns
nothing of a group.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from aqtopo.checkpoint.engine_state import engine_groups, scaler_state
from aqtopo.checkpoint.manifest import Manifest
from aqtopo.checkpoint.partition import fragments
from aqtopo.checkpoint.ranks import Ranks, refuse_together
from aqtopo.checkpoint.shards import KINDS, MASTER
from aqtopo.checkpoint.universal import UniversalState
from aqtopo.checkpoint.weights import WEIGHTS_FILE

SavedNames = Mapping[str, str | None]
"""Saved name by the run's name; None for what starts fresh."""


def read_weights(folder: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Weights, frozen parameters and buffers by saved name; each rank reads its share of the file.

    Raises:
        RefusedError: on all ranks: the file cannot be understood.
    """
    path = folder / WEIGHTS_FILE
    size = path.stat().st_size
    length = -(-size // ranks.size)
    part = np.zeros(length, np.uint8)
    with path.open("rb") as file:
        file.seek(ranks.rank * length)
        data = file.read(length)
    part[: len(data)] = np.frombuffer(data, np.uint8)
    whole = ranks.gather_parts(torch.from_numpy(part))[:size]
    problems, weights = [], {}
    try:
        weights = load(whole.numpy().tobytes())
    except SafetensorError as error:
        problems = [f"{path}: {error}"]
    refuse_together(ranks, "the weights cannot be read", problems)
    return weights


def load_module(module: nn.Module, weights: Mapping[str, Tensor], names: SavedNames) -> None:
    """Load weights, frozen parameters and buffers strictly, before the engine is made.

    DeepSpeed restores none but the trained parameters from a universal checkpoint, and says nothing.
    """
    state = module.state_dict()
    for name, tensor in state.items():
        saved = names.get(name, name)
        if saved is not None:
            assert saved in weights, saved
            tensor.copy_(weights[saved])
    module.load_state_dict(state, strict=True)


def restore_engine(engine: Any, state: UniversalState, names: SavedNames) -> None:
    """Give this rank's part of every group its weights, moments and step count, and the engine its counters.

    Args:
        engine: fresh, around a module that holds the saved weights.
        state: the saved state.
        names: from `match_names`.
    """
    zero, manifest = engine.optimizer, state.manifest
    for index, group in enumerate(engine_groups(engine)):
        master = zero.single_partition_of_fp32_groups[index]
        kept = {
            kind: torch.zeros_like(master, dtype=torch.float32).requires_grad_(False) for kind in KINDS[1:]
        }
        parts = {MASTER: master.data, **kept}
        for fragment in fragments(group.elements, engine.world_size, engine.global_rank):
            saved = names[fragment.name]
            if saved is not None:
                for kind, part in parts.items():
                    part[fragment.in_part] = state.elements(saved, kind, fragment.in_parameter)
        step = manifest.optimizer_steps.get(group.name, max(manifest.optimizer_steps.values()))
        zero.optimizer.state[master] = {"step": _step_of(zero.optimizer, index, step), **kept}
    # Links to moments that DeepSpeed may have made point to what was there before.
    zero._hp_optimizer_states_linked = False
    zero.update_lp_params()
    engine.global_steps = manifest.run.position.step
    engine.global_samples = manifest.global_samples
    engine.skipped_steps = manifest.skipped_steps


def restore_loss_scaler(engine: Any, manifest: Manifest) -> None:
    """Go on with the loss scale where both runs scale dynamically; elsewhere the configuration's stands.

    DeepSpeed takes whatever scaler the checkpoint has: fp16 after bf16 would go on with a static scale of 1,
    bf16 after fp16 would skip steps.
    """
    if scaler_state(engine) is None or engine.optimizer.loss_scaler.dtype != torch.float16:
        return
    scaler = engine.optimizer.loss_scaler
    for name, value in (manifest.loss_scaler or {}).items():
        setattr(scaler, name, type(getattr(scaler, name))(value))


def _step_of(optimizer: Any, index: int, step: float) -> Any:
    """The step count in the form the optimizer keeps: PyTorch's a tensor, DeepSpeed's an integer."""
    if not isinstance(optimizer, torch.optim.Adam):
        optimizer.param_groups[index]["step"] = int(step)
        return int(step)
    group = optimizer.param_groups[index]
    on_device = group.get("fused") or group.get("capturable")
    device = group["params"][0].device if on_device else torch.device("cpu")
    return torch.tensor(step, dtype=torch.float32, device=device)
