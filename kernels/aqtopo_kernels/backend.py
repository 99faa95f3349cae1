"""Which implementation of an operation runs: one rule, for every operation of this package.

The rule looks at the device alone. An implementation that cannot run says so; nothing falls back to another.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


class Backend(StrEnum):
    """An implementation of this package's operations."""

    CPU = "cpu"
    """PyTorch's own CPU kernels, O(N) in memory."""

    TRITON = "triton"
    """This package's Triton kernels, on CUDA and ROCm; on the CPU only inside Triton's interpreter."""

    REFERENCE = "reference"
    """The formula written out, N x N in memory; only ever when a caller asks for it."""


def backend_for(device: torch.device | str) -> Backend:
    """The implementation that tensors on this device run through.

    ROCm devices are called `cuda` by PyTorch. With TRITON_INTERPRET=1 in the environment (Triton's own
    switch), CPU tensors run through the Triton kernels in Triton's interpreter.

    Raises:
        ValueError: there is no implementation for such a device.
    """
    kind = torch.device(device).type
    if kind == "cuda" or (kind == "cpu" and _interpreting()):
        return Backend.TRITON
    if kind in ("cpu", "meta"):  # meta tensors have shapes only: any implementation's will do
        return Backend.CPU
    raise ValueError(
        f"aqtopo_kernels runs on CPU, CUDA and ROCm devices, but the tensors are on {kind!r}; move them, or "
        'ask for backend="reference".'
    )


_WIDEST_FASTER = {torch.float32: 128, torch.bfloat16: 96, torch.float16: 96}
"""Columns of a head up to which the compiled code on gfx90a takes fewer clocks than the vendor's;
float16 was not compared and goes by bfloat16."""


def better_than_torch(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attention without bias goes through this package rather than PyTorch's own.

    So it does on gfx90a where the compiled code says so (`benchmarks/README.md`, from
    `python -m benchmarks.vendor_kernels`): of the clocks that AMD's Triton kernels in flash-attn take forward
    and backward for a head of 96 columns, these take 0.65 in bfloat16 and 0.63 in float32; nothing was run on
    a GPU. PyTorch's own there are AOTriton's, by the same maker, which divide 96 columns as these do instead
    of padding them; those are not in that comparison, but for widths that need no padding theirs stand for
    them: 0.77 and 0.92 at 64 columns, 1.02 (so PyTorch's are kept) and 0.87 at 128. On gfx942 PyTorch may
    run assembly, to which nothing here was compared; elsewhere its kernels are the vendors' best, or the
    very ones that the CPU path is made of.
    """
    on_rocm = torch.version.hip is not None and torch.device(device).type == "cuda"
    if not on_rocm or head_dim % 16 or head_dim > _WIDEST_FASTER.get(dtype, 0):
        return False
    return str(torch.cuda.get_device_properties(device).gcnArchName).startswith("gfx90a")


def implementation(operation: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that computes `operation` for tensors on this device.

    Raises:
        ValueError: the device has no implementation, Triton is not installed where it is needed, or its
            interpreter cannot compute in this dtype.
    """
    backend = backend_for(device)
    if backend is Backend.TRITON and find_spec("triton") is None:
        raise ValueError(
            f"{operation} needs Triton on {device.type!r}, and it is not installed. PyTorch's CUDA and ROCm "
            "wheels bring it along; otherwise `pip install aqtopo[triton]`."
        )
    if backend is Backend.TRITON and dtype == torch.bfloat16 and _interpreting():
        raise ValueError(
            f"{operation} cannot run in bfloat16 in Triton's interpreter, which takes its bits for whole "
            "numbers and says nothing; use float32 or float16, or unset TRITON_INTERPRET."
        )
    module = "launch" if backend is Backend.TRITON else "cpu"
    return import_module(f"aqtopo_kernels.{operation}.{module}")


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def debugging() -> bool:
    """Whether AQTOPO_KERNELS_DEBUG=1 asks for checks that wait for the device."""
    return os.environ.get("AQTOPO_KERNELS_DEBUG") == "1"
