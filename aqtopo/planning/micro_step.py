"""Bytes of activations that one micro-step keeps for its backward pass: an estimate.

The model is run once on the meta device, which computes nothing and needs no memory, and autograd's hooks
see each tensor that it would keep. So the count follows the model's code. It leaves out temporaries, the
allocator's rounding and the backward pass's own products; fused attention is taken to keep what every flash
kernel keeps (query, key, value, output and log-sum-exp), whatever the device at hand would choose.
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

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT
from aqtopo.model.dropout import SampleDropout

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ELSEWHERE = "embedding and final norm"


@dataclass(frozen=True)
class ActivationBytes:
    """Activations of one micro-step on one rank [bytes].

    Attributes:
        parts: kept by each block, by the head and by everything else, without gradient checkpointing.
        block_inputs: what gradient checkpointing keeps of all blocks together: their inputs.
    """

    parts: dict[str, int]
    block_inputs: int

    @property
    def plain(self) -> int:
        """In all, without gradient checkpointing."""
        return sum(self.parts.values())

    @property
    def checkpointed(self) -> int:
        """At most at once with gradient checkpointing: the blocks' inputs and one block computed again."""
        blocks = {name: count for name, count in self.parts.items() if name.startswith("blocks.")}
        return self.plain - sum(blocks.values()) + self.block_inputs + max(blocks.values())


def activation_bytes(model: AirQualityViT, config: RunConfig) -> ActivationBytes:
    """Estimate the activations of one micro-step.

    Args:
        model: the run's model on the meta device.
        config: the run; micro-batch and precision count.
    """
    dtype = _DTYPES[config.deepspeed.precision]
    model = model.to(
        dtype
    ).eval()  # dropout needs seeds, and those a real device: its masks are added by hand
    counter = _Counter(model)
    batch, (rows, columns) = config.micro_batch, config.data.grid
    leads = 1 if config.model.lead_time == "encoder" else len(config.data.horizons)
    with torch.device("meta"), counter.watching(), attention_without_arithmetic():
        inputs = torch.empty(batch, len(config.data.variables), rows, columns)
        model(inputs, torch.empty(batch, 2, rows, columns), torch.empty(batch, leads), None)
    block_input = batch * config.tokens * config.model.dim * dtype.itemsize
    return ActivationBytes(dict(counter.parts), block_input * config.model.depth)


class _Counter:
    """Counts each tensor that autograd keeps once, under the part of the model that was running."""

    def __init__(self, model: AirQualityViT) -> None:
        self.parts: defaultdict[str, int] = defaultdict(int)
        self._model = model
        self._running = [_ELSEWHERE]
        lasting = [*model.parameters(), *model.buffers()]
        # Storages are held, or the address of one that is gone could be given to the next.
        self._seen = {_storage_key(tensor): tensor for tensor in lasting}

    @contextmanager
    def watching(self) -> Iterator[None]:
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
            self._running.append(name)

        def leave(*_: Any) -> None:
            self._running.pop()

        yield part.register_forward_pre_hook(enter)
        yield part.register_forward_hook(leave)

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._seen.setdefault(_storage_key(tensor), tensor) is tensor:
            self.parts[self._running[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    def _count_mask(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.parts[self._running[-1]] += output.numel()  # one byte an element


def _storage_key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata  # the address of the storage itself; meta tensors have no data
    return key


def attention_without_arithmetic() -> TorchFunctionMode:
    """A mode in which PyTorch's fused attention has shapes and keeps tensors, but does nothing."""
    return _FlashAttention()


class _FlashAttention(TorchFunctionMode):
    """Lets fused attention keep what flash kernels keep; on the meta device it would be unfolded to N x N."""

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
    """The shapes of flash attention, without its arithmetic."""

    @staticmethod
    def forward(ctx: Any, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        output = torch.empty_like(q_BHND)
        logsumexp = q_BHND.new_empty(q_BHND.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q_BHND, k_BHND, v_BHND, output, logsumexp)
        return output
