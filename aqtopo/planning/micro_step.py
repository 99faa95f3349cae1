"""Activation bytes and FLOP of one micro-step, from one pass on the meta device without computation.

Bytes are an estimate: autograd's hooks see each saved tensor. Temporaries, allocator rounding and the
backward pass's own results are not counted. PyTorch counts the FLOP of matrix products.

Fused attention counts as a flash kernel on any device: it saves query, key, value, output and log-sum-exp,
and computes 4 N^2 D a sample forward and 2.5 times that backward, which recomputes the scores. With the local
bias D is that of the wider heads, in float32. Matrix products cost twice their forward pass backward.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT
from aqtopo.model.dropout import SampleDropout
from aqtopo.model.locality import EXTRA_COLUMNS

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OTHER_PARTS = "embedding and final norm"
BACKWARD_OF_PRODUCTS, BACKWARD_OF_ATTENTION = 2.0, 2.5
"""FLOP relative to the forward pass."""


@dataclass(frozen=True)
class ActivationBytes:
    """Activations of one micro-step on one rank [bytes].

    Attributes:
        parts: saved by each block, the head and everything else, without gradient checkpointing.
        block_inputs: inputs of all blocks, which gradient checkpointing saves.
    """

    parts: dict[str, int]
    block_inputs: int

    @property
    def plain(self) -> int:
        """Total without gradient checkpointing."""
        return sum(self.parts.values())

    @property
    def checkpointed(self) -> int:
        """Maximum with gradient checkpointing: the blocks' inputs and one recomputed block."""
        blocks = {name: count for name, count in self.parts.items() if name.startswith("blocks.")}
        return self.plain - sum(blocks.values()) + self.block_inputs + max(blocks.values())


def activation_bytes(model: AirQualityViT, config: RunConfig) -> ActivationBytes:
    """Estimate the activations of one micro-step.

    Args:
        model: model on the meta device.
        config: run; micro-batch and precision are used.
    """
    dtype = _DTYPES[config.deepspeed.precision]
    counter = _Counter(model.to(dtype))
    with counter.counting():
        _forward(model, config, torch.get_default_dtype())
    block_input = config.micro_batch * config.tokens * config.model.dim * dtype.itemsize
    return ActivationBytes(dict(counter.parts), block_input * config.model.depth)


def _forward(model: AirQualityViT, config: RunConfig, dtype: torch.dtype) -> None:
    """Run the model on the meta device.

    In evaluation mode: dropout needs seeds on a real device. `_Counter` adds its masks.
    """
    batch, (rows, columns) = config.micro_batch, config.data.grid
    leads = 1 if config.model.lead_time == "encoder" else len(config.data.horizons)
    with torch.device("meta"), _FlashAttention():
        inputs = torch.empty(batch, len(config.data.inputs), rows, columns, dtype=dtype)
        model.eval()(inputs, torch.empty(batch, 2, rows, columns), torch.empty(batch, leads), None)


class _Counter:
    """Counter of saved tensors, each storage once, by the part of the model that is running."""

    def __init__(self, model: AirQualityViT) -> None:
        self.parts: defaultdict[str, int] = defaultdict(int)
        self._model = model
        self._stack = [_OTHER_PARTS]
        permanent = [*model.parameters(), *model.buffers()]
        # The tensors are kept alive because the address of a freed storage may be reused.
        self._seen = {_storage_key(tensor): tensor for tensor in permanent}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while active."""
        model = self._model
        named = {f"blocks.{index}": block for index, block in enumerate(model.blocks)} | {"head": model.head}
        handles = [handle for name, part in named.items() for handle in self._follow(name, part)]
        masked = [m for m in model.modules() if isinstance(m, SampleDropout) and m.p > 0.0]
        handles += [module.register_forward_hook(self._count_mask) for module in masked]
        try:
            with saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _follow(self, name: str, part: nn.Module) -> Iterator[Any]:
        def enter(*_: Any) -> None:
            self._stack.append(name)

        def leave(*_: Any) -> None:
            self._stack.pop()

        yield part.register_forward_pre_hook(enter)
        yield part.register_forward_hook(leave)

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._seen.setdefault(_storage_key(tensor), tensor) is tensor:
            self.parts[self._stack[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    def _count_mask(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.parts[self._stack[-1]] += output.numel()  # one byte per element


def _storage_key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata  # address of the storage object; meta tensors have no data
    return key


class _FlashAttention(TorchFunctionMode):
    """Mode in which fused attention saves what flash kernels save, not N x N scores."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is functional.scaled_dot_product_attention:
            return _FlashShapes.apply(*args[:3])  # type: ignore[no-untyped-call]
        return function(*args, **(kwargs or {}))


class _FlashShapes(torch.autograd.Function):
    """Flash attention without computation: shapes and saved tensors only."""

    @staticmethod
    def forward(ctx: Any, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        output = torch.empty_like(q_BHND)
        logsumexp = q_BHND.new_empty(q_BHND.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q_BHND, k_BHND, v_BHND, output, logsumexp)
        return output


@dataclass(frozen=True)
class MicroStepFlop:
    """FLOP of one micro-step on one rank, forward pass, by part.

    Attributes:
        products: matrix products of `embedding`, `blocks` and `head`.
        attention: scores and weighted sums of all blocks.
        float32_attention: share of the blocks with the local bias, which use float32 at any precision.
        checkpointing: the backward pass recomputes the blocks.
    """

    products: dict[str, int]
    attention: int
    float32_attention: int
    checkpointing: bool

    @property
    def forward(self) -> float:
        """FLOP of the forward pass."""
        return float(sum(self.products.values()) + self.attention)

    @property
    def backward(self) -> float:
        """FLOP of the backward pass, gradient checkpointing included."""
        recomputed = self.products["blocks"] + self.attention if self.checkpointing else 0
        products = BACKWARD_OF_PRODUCTS * sum(self.products.values())
        return products + BACKWARD_OF_ATTENTION * self.attention + recomputed

    def forward_s(self, rate: float, float32_rate: float) -> float:
        """Return the duration of the forward pass; rates of the run's precision and float32 [FLOP/s]."""
        return (self.forward - self.float32_attention) / rate + self.float32_attention / float32_rate

    def backward_s(self, rate: float, float32_rate: float) -> float:
        """Return the duration of the backward pass; rates as above."""
        in_float32 = (BACKWARD_OF_ATTENTION + self.checkpointing) * self.float32_attention
        return (self.backward - in_float32) / rate + in_float32 / float32_rate


def count_flop(model: AirQualityViT, config: RunConfig) -> MicroStepFlop:
    """Count the FLOP of one micro-step.

    Args:
        model: model on the meta device.
        config: run; the micro-batch is used.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        _forward(model, config, next(model.parameters()).dtype)
    counts = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    total, kind = counts["Global"], type(model).__name__
    blocks = sum(counts.get(f"{kind}.blocks.{index}", 0) for index in range(config.model.depth))
    head = counts.get(f"{kind}.head", 0)
    settings, scores = config.model, 4 * config.micro_batch * config.tokens**2
    local = len(settings.bias_blocks) if settings.local_bias else 0
    in_float32 = scores * (settings.dim + settings.heads * EXTRA_COLUMNS) * local
    attention = scores * settings.dim * (settings.depth - local) + in_float32
    products = {"embedding": total - blocks - head, "blocks": blocks, "head": head}
    return MicroStepFlop(products, attention, in_float32, settings.gradient_checkpointing)
