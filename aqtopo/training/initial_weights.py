"""Initial weights of a fine-tuning: from a run, an exported model, a safetensors file or ClimaX.

The optimizer is fresh and the run begins at step 0. Tensors are matched by name, and the rows of tensors with
one row for each input, target or horizon by the row's name. The position embedding is interpolated to another
grid. What starts fresh must be allowed in `training.fresh_weights`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.checkpoint.files import check_files, load_torch, load_weights
from aqtopo.checkpoint.inspection import find_state
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, read_manifest
from aqtopo.checkpoint.tags import CHECKPOINTS, best_tag, read_lock
from aqtopo.config import RunConfig
from aqtopo.config.record import faults
from aqtopo.distributed.process_group import SINGLE_RANK
from aqtopo.inference.card import is_export, read_card
from aqtopo.inference.export import CONFIG_KEY
from aqtopo.model.wind_order import WindOrder

PREFIX = r"^((model|net|module|climax|_orig_mod)\.)+"
"""Prefixes of Lightning, DDP and torch.compile."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of saved weights that are converted to the model's."""

_LEVELS = {
    "geopotential": (50, 250, 500, 600, 700, 850, 925),
    "u_component_of_wind": (50, 250, 500, 600, 700, 850, 925),
    "v_component_of_wind": (50, 250, 500, 600, 700, 850, 925),
    "temperature": (50, 250, 500, 600, 700, 850, 925),
    "relative_humidity": (50, 250, 500, 600, 700, 850, 925),
    "specific_humidity": (50, 250, 500, 600, 700, 850, 925),
}
CLIMAX_VARIABLES = (
    "land_sea_mask",
    "elevation",
    "lat2d",
    "temp",
    "u",
    "v",
    *(f"{name}_{level}" for name, levels in _LEVELS.items() for level in levels),
)
"""Inputs of ClimaX's published checkpoints in their order; fields of aqtopo with its names."""


@dataclass(frozen=True)
class Source:
    """Saved weights and what their rows mean.

    Attributes:
        weights: tensors by name.
        config: of the training; None for a file that does not hold it.
        inputs: names of the inputs; None if unknown.
        patches: patches along (latitude, longitude); None if unknown.
    """

    weights: Mapping[str, Tensor]
    config: RunConfig | None
    inputs: tuple[str, ...] | None
    patches: tuple[int, int] | None


@dataclass(frozen=True)
class InitialWeights:
    """State of a model to begin with, and where it comes from.

    Attributes:
        state: every tensor of the model.
        matched: names of the tensors that were taken, wholly or in part.
        fresh: tensors, and rows such as `inputs.no2`, that start fresh.
        unused: saved tensors and rows that the model lacks.
        interpolated_from: patches of the saved position embedding; None if they are the model's.
    """

    state: dict[str, Tensor]
    matched: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    interpolated_from: tuple[int, int] | None

    def line(self, path: str) -> str:
        """Return the line of the log."""
        before = self.interpolated_from
        moved = f", pos_embed interpolated from {before[0]} x {before[1]} patches" if before else ""
        return (
            f"initial weights from {path}: {len(self.matched)} of {len(self.state)} tensors by name{moved}; "
            f"fresh as allowed: {_listed(self.fresh)}; not used: {_listed(self.unused)}"
        )

    def facts(self, path: str) -> dict[str, Any]:
        """Return the facts of the log's event."""
        return {
            "path": path,
            "matched": len(self.matched),
            "tensors": len(self.state),
            "fresh": list(self.fresh),
            "unused": list(self.unused),
            "interpolated_from": self.interpolated_from,
        }


def _listed(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more or "none"


def initial_weights(config: RunConfig, module: nn.Module) -> InitialWeights:
    """Read `training.initial_weights` and match it with a freshly initialised model; the model is unchanged.

    On a model on the device `meta`, only names and shapes are checked.

    Raises:
        ValueError: the file cannot be used, nothing fits, or what starts fresh is not allowed.
        RefusedError: the file is damaged, or holds more than data.
    """
    path = str(config.training.initial_weights)
    source, state = read_source(Path(path)), module.state_dict()
    _check_types(path, source, state)
    found = {name: _tensor(name, tensor, source, config) for name, tensor in state.items()}
    new = {name: state[name] if part.values is None else part.values for name, part in found.items()}
    matched = tuple(name for name, part in found.items() if part.values is not None)
    if not matched:
        raise ValueError(
            f"training.initial_weights = {path}: no tensor fits this model. It has "
            f"{', '.join(list(source.weights)[:5]) or 'none'} and others. Name the weights of such a model."
        )
    fresh = tuple(dict.fromkeys(label for part in found.values() for label in part.fresh))
    rows = dict.fromkeys(label for part in found.values() for label in part.unused)
    unused = (*rows, *(name for name in source.weights if name not in state))
    _check_allowed(fresh, path, source, state, config)
    moved = "pos_embed" in matched and source.patches != config.patch_grid
    return InitialWeights(new, matched, fresh, unused, source.patches if moved else None)


def _check_types(path: str, source: Source, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are integers, complex or packed numbers.

    Raises:
        ValueError: a weight is neither of the model's type nor one of `FLOATS`.
    """
    for name in (name for name in state if name in source.weights):
        saved, own = source.weights[name].dtype, state[name].dtype
        if saved not in (own, *FLOATS):
            raise ValueError(
                f"training.initial_weights = {path} holds {name} as {saved}, and the model's is {own}. Save "
                f"it as one of {', '.join(map(str, FLOATS))}."
            )


def _check_allowed(
    fresh: Sequence[str], path: str, source: Source, state: Mapping[str, Tensor], config: RunConfig
) -> None:
    allowed = config.training.fresh_weights
    refused = [name for name in fresh if not any(fnmatchcase(name, pattern) for pattern in allowed)]
    if not refused:
        return

    def why(name: str) -> str:
        if name not in state:
            return "not among the saved rows"
        saved = source.weights.get(name)
        if saved is None or saved.shape != state[name].shape:
            return "not saved" if saved is None else f"saved with {list(saved.shape)}"
        return "the names of its saved rows are unknown"

    shapes = {name: f" {list(state[name].shape)}" if name in state else "" for name in refused}
    lines = "\n".join(f"  {name}{shapes[name]}: {why(name)}" for name in refused)
    raise ValueError(
        f"training.initial_weights = {path} lacks parts of this model:\n{lines}\n"
        f"Let them start fresh: training.fresh_weights = {json.dumps(refused)} (* matches any text), or "
        "choose other weights."
    )


class _Part(NamedTuple):
    """Values of a model's tensor with the saved parts filled in; None if nothing of it was saved."""

    values: Tensor | None
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def _tensor(name: str, tensor: Tensor, source: Source, config: RunConfig) -> _Part:
    """Return the tensor with all that is saved of it."""
    nothing = _Part(None, fresh=(name,))
    if name not in source.weights:
        return nothing
    saved = source.weights[name].to(tensor)
    if name == "pos_embed":
        return _position_embedding(saved, tensor, source, config) or nothing
    now, then = _row_names(name, config, config.inputs), _row_names(name, source.config, source.inputs)
    if not now and not then:
        return _Part(saved) if saved.shape == tensor.shape else nothing
    if now is None or then is None or now.keys() != then.keys():
        return nothing
    # The head's rows are (pixel of the patch, target).
    head = name.startswith("head.")
    if head and source.config is not None:
        pixels = source.config.model.patch**2
        if saved.ndim == 0 or saved.shape[0] % pixels:
            return nothing
        tensor = tensor.reshape(config.model.patch**2, -1, *tensor.shape[1:])
        saved = saved.reshape(pixels, saved.shape[0] // pixels, *saved.shape[1:])
    if saved.ndim != tensor.ndim or any(saved.shape[dim] != len(rows) for dim, rows in then.items()):
        return nothing
    others = [
        tuple(size for dim, size in enumerate(each.shape) if dim not in now) for each in (tensor, saved)
    ]
    common = {dim: [row for row in rows if row in then[dim]] for dim, rows in now.items()}
    if others[0] != others[1] or not all(common.values()):
        return nothing
    whole = tensor.clone()
    _copy_rows(whole, saved, [(dim, now[dim], then[dim], rows) for dim, rows in common.items()])
    return _Part(
        whole.flatten(0, 1) if head else whole,
        fresh=tuple(row for dim, rows in now.items() for row in rows if row not in then[dim]),
        unused=tuple(row for dim, rows in then.items() for row in rows if row not in now[dim]),
    )


def _row_names(
    name: str, config: RunConfig | None, inputs: tuple[str, ...] | None
) -> dict[int, tuple[str, ...]] | None:
    """Return the names of a tensor's rows by dimension; empty without such rows, None if they are unknown."""
    named = () if inputs is None else tuple(f"inputs.{each}" for each in inputs)
    if name in ("token_embeds.proj_weights", "token_embeds.proj_biases"):
        return {0: named} if named else None
    if name in ("var_embed", "local_path.convolutions.0.weight"):
        return {1: named} if named else None
    if config is None:
        return None if name.startswith(("head.", "local_path.")) else {}
    targets = tuple(f"targets.{each}" for each in config.data.targets)
    if name in ("local_path.weight", "local_path.bias"):
        return {0: tuple(f"horizons.{each}" for each in config.data.horizons), 1: targets}
    return {1: targets} if name.startswith(f"head.{2 * config.model.decoder_depth}.") else {}


_Rows = tuple[int, tuple[str, ...], tuple[str, ...], list[str]]
"""A dimension, the names of its rows now and in the saved tensor, and those that both have."""


def _copy_rows(whole: Tensor, saved: Tensor, dims: list[_Rows]) -> None:
    """Copy the rows that both tensors have, by name in one or several dimensions."""
    (dim, now, then, rows), *rest = dims
    into, out = (
        torch.tensor([names.index(row) for row in rows], device=whole.device) for names in (now, then)
    )
    chosen = saved.index_select(dim, out)
    if rest:
        inner = whole.index_select(dim, into)
        _copy_rows(inner, chosen, rest)
        chosen = inner
    whole.index_copy_(dim, into, chosen)


def _position_embedding(saved: Tensor, tensor: Tensor, source: Source, config: RunConfig) -> _Part | None:
    """Return the position embedding in this model's scan order, interpolated to its patches."""
    if source.patches is None or saved.shape != (1, math.prod(source.patches), tensor.shape[-1]):
        return None
    order = None if source.config is None else _scan_order(source.config)
    raster = saved if order is None else saved.index_copy(1, order.to(saved.device), saved)
    if source.patches != config.patch_grid:
        maps = raster.transpose(1, 2).reshape(1, -1, *source.patches)
        maps = functional.interpolate(maps, size=config.patch_grid, mode="bicubic", align_corners=False)
        raster = maps.flatten(2).transpose(1, 2)
    order = _scan_order(config)
    return _Part(raster if order is None else raster.index_select(1, order.to(raster.device)))


def _scan_order(config: RunConfig) -> Tensor | None:
    """Return the raster index of each position of the position embedding; None for raster order."""
    model = config.model
    if not model.wind_order:
        return None
    wind_order = WindOrder(
        model.patch,
        config.patch_grid,
        model.regions,
        sectors=model.sectors,
        calm_below=model.calm_below,
        latitude_ascending=True,  # does not matter in calm air
    )
    return wind_order.calm_order()


def read_source(path: Path) -> Source:
    """Read weights and the names of their rows.

    Raises:
        ValueError: there is no such file, or it holds no weights.
        RefusedError: it is damaged, or holds more than data.
    """
    if not path.exists():
        raise ValueError(
            f"training.initial_weights = {path} does not exist. Name a run, an exported model, a safetensors "
            "file or a checkpoint of ClimaX."
        )
    if path.is_file() and path.suffix != ".safetensors":
        return _from_lightning(path)
    folder = path.parent if path.is_file() else path
    if is_export(folder):
        card = read_card(folder)
        check_files(folder, card.files, SINGLE_RANK)
        return _with_config(load_weights(folder / card.model_file), card.config, folder)
    if path.is_file():
        weights, metadata = load_weights(path), _metadata(path)
        if CONFIG_KEY not in metadata:
            return Source(weights, None, None, None)
        try:
            tree = json.loads(metadata[CONFIG_KEY])
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: its metadata `{CONFIG_KEY}` is not JSON ({error}). Export it again."
            ) from None
        return _with_config(weights, tree, path)
    best = best_tag(path) if (path / CHECKPOINTS).is_dir() else None
    state = find_state(path) if best is None else best.folder(path)
    with read_lock(state):
        manifest = read_manifest(state)
        check_files(state, {WEIGHTS_FILE: manifest.files[WEIGHTS_FILE]}, SINGLE_RANK)
        return _with_config(load_weights(state / WEIGHTS_FILE), manifest.run.config, path)


def _with_config(weights: Mapping[str, Tensor], tree: Mapping[str, Any], path: Path) -> Source:
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(faults(error, RunConfig, f"{path}, its configuration,")) from None
    return Source(weights, config, config.inputs, config.patch_grid)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _from_lightning(path: Path) -> Source:
    """Read the weights of a Lightning checkpoint of ClimaX, of which only data are loaded."""
    content = load_torch(path)
    saved = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(saved, dict):
        raise ValueError(
            f"training.initial_weights = {path} holds no `state_dict`. Name a checkpoint of a model."
        )
    tensors = {
        re.sub(PREFIX, "", str(name)).replace("channel_", "var_"): value
        for name, value in saved.items()
        if isinstance(value, Tensor)
    }
    # Older files have a convolution for each variable.
    for end, stacked in (("weight", "token_embeds.proj_weights"), ("bias", "token_embeds.proj_biases")):
        pattern = re.compile(rf"token_embeds\.(\d+)\.proj\.{end}")
        found = {int(m[1]): name for name in tensors if (m := pattern.fullmatch(name))}
        parts = [tensors.pop(found[index]) for index in sorted(found)]
        if len({part.shape for part in parts}) == 1:
            tensors[stacked] = torch.stack(parts)
    count, tokens = (
        tensors[name].shape[1] if name in tensors and tensors[name].ndim == 3 else 0
        for name in ("var_embed", "pos_embed")
    )
    rows = math.isqrt(tokens // 2)
    globe = (rows, 2 * rows) if tokens and 2 * rows * rows == tokens else None
    return Source(tensors, None, CLIMAX_VARIABLES if count == len(CLIMAX_VARIABLES) else None, globe)
