"""Runs the `triton.jit` functions interpreted, emulated, or on a GPU, in a separate process.

Whether a kernel is interpreted or compiled is decided when its module is imported, so both need processes.
What the kernels write into is poisoned with NaN and stands between guard bands: an element left out or one
too many shows.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

ON_DEVICE = ["device"] if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" else []
"""Launcher of the GPU. TRITON_INTERPRET=1 adds it without a GPU: its tensors are then on the CPU."""

CACHE = Path(__file__).parents[2] / ".cache" / "triton"
P = ParamSpec("P")
T = TypeVar("T")
_GUARD = 4096
_guarded: list[Tensor] = []
_emulation = ExitStack()
_new_empty = torch.Tensor.new_empty


class Launcher:
    """A process in which the kernels run; `run` calls a function of a module there, with CPU tensors.

    They run in Triton's interpreter, compiled for gfx90a or gfx942 on the emulator of `tests.amdgcn`, or on
    the GPU ("device").
    """

    def __init__(self, name: str) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(name,))

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._name == "device":
            return self._pool.submit(_on_device, function, args, kwargs).result(timeout=300)
        return self._pool.submit(function, *args, **kwargs).result(timeout=300)

    def close(self) -> None:
        self._pool.shutdown()


def _start(name: str) -> None:
    torch.set_num_threads(1)
    if name == "device":
        return
    if name == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"
        return
    os.environ["TRITON_CACHE_DIR"] = str(CACHE)
    from tests.amdgcn.device import emulating

    _emulation.enter_context(emulating(name))  # until the process ends


def _on_device(function: Callable[..., T], args: Any, kwargs: Any) -> T:
    """Call a function with its tensors on the device, and return its result's tensors on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to(device), (args, kwargs))
    return pytree.tree_map_only(Tensor, lambda x: x.cpu(), function(*args, **kwargs))


def attend(dout: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    """Return (out, lse), and with dout also (dq, dk, dv, dalpha or an empty tensor)."""
    from aqtopo_kernels.elevation_attention import launch

    with Poison():
        out, lse = launch.forward(*inputs)
        if dout is None:
            return out, lse
        q, k, v, *others = inputs
        *gradients, dalpha = launch.backward(dout, q, k, v, out, lse, *others)
    return out, lse, *gradients, torch.empty(0) if dalpha is None else dalpha


def differentiate(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor,
    alpha: Tensor,
    order: Tensor,
    scale: float,
) -> tuple[tuple[Tensor, ...], list[str]]:
    """Return (out, dq, dk, dv, dalpha) of the operator, and the functions of `launch` that ran."""
    from aqtopo_kernels import elevation_attention
    from aqtopo_kernels.elevation_attention import launch

    launched = []
    originals = {"forward": launch.forward, "backward": launch.backward}

    def watched(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            launched.append(name)
            return originals[name](*arguments)

        return call

    for name in originals:
        setattr(launch, name, watched(name))
    try:
        leaves = [x.requires_grad_() for x in (q, k, v, alpha)]
        out = elevation_attention(q, k, v, elevation, alpha, order, scale)
        gradients = torch.autograd.grad(out, leaves, dout)
    finally:
        for name, original in originals.items():
            setattr(launch, name, original)
    return (out.detach(), *gradients), launched


def check_operator(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor,
    alpha: Tensor,
    order: Tensor,
    scale: float,
) -> dict[str, str]:
    """Return the result of `opcheck`."""
    del dout, scale
    import aqtopo_kernels  # noqa: F401 - registers the operator

    for x in (q, k, v, alpha):
        x.requires_grad_()
    operator = torch.ops.aqtopo_kernels.elevation_attention.default
    return torch.library.opcheck(operator, (q, k, v, elevation, alpha, order, 0.5))


def move(x: Tensor, order: Tensor, add: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x gathered and x scattered."""
    from aqtopo_kernels.wind_gather import launch

    with Poison():
        return launch.gather(x, order, add), launch.scatter(x, order)


def is_interpreted() -> list[str]:
    """Return the types of the kernels."""
    from aqtopo_kernels.elevation_attention import kernel

    return [type(getattr(kernel, name)).__name__ for name in dir(kernel) if name.endswith("_kernel")]


def to_bfloat16(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x rounded and truncated by bits, and the truncated values in float32."""
    from tests.kernels.bits_kernel import bits_kernel

    rounded, cut = torch.empty_like(x, dtype=torch.bfloat16), torch.empty_like(x, dtype=torch.bfloat16)
    summed = torch.empty_like(x)
    bits_kernel[(1,)](x, rounded, cut, summed, SIZE=x.numel())
    return rounded, cut, summed


class Poison:
    """Make `new_empty` return NaN between guard bands, and check at the end that the bands are unchanged."""

    def __enter__(self) -> None:
        torch.Tensor.new_empty = _poisoned  # type: ignore[method-assign, assignment]

    def __exit__(self, *_: object) -> None:
        torch.Tensor.new_empty = _new_empty  # type: ignore[method-assign]
        for buffer in _guarded:
            assert buffer[:_GUARD].isnan().all(), "written in front of an output"
            assert buffer[-_GUARD:].isnan().all(), "written behind an output"
        _guarded.clear()


def _poisoned(
    self: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None, **others: Any
) -> Tensor:
    if others:  # not from a launch: the interpreter copies arguments
        return _new_empty(self, shape, dtype=dtype, **others)
    size = torch.Size(shape).numel()
    buffer = torch.full((size + 2 * _GUARD,), float("nan"), dtype=dtype or self.dtype, device=self.device)
    _guarded.append(buffer)
    return buffer[_GUARD : _GUARD + size].view(shape)
