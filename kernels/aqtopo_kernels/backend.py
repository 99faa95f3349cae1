"""Selection of an operator's implementation, by the same rule for every operator.

The rule depends on the device alone. If the implementation cannot run, it raises an error; there is no
fallback.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


class Backend(StrEnum):
    """Implementation of this package's operators."""

    CPU = "cpu"
    """PyTorch's CPU kernels, O(N) in memory."""

    TRITON = "triton"
    """This package's Triton kernels, on CUDA and ROCm; on the CPU only inside Triton's interpreter."""

    REFERENCE = "reference"
    """The formula in plain PyTorch, N x N in memory; used only if a caller requests it."""


def backend_for(device: torch.device | str) -> Backend:
    """Return the implementation for tensors on a device.

    PyTorch calls ROCm devices `cuda`. With TRITON_INTERPRET=1 in the environment (Triton's own
    switch), CPU tensors run through the Triton kernels in Triton's interpreter.

    Raises:
        ValueError: there is no implementation for the device.
    """
    kind = torch.device(device).type
    if kind == "cuda" or (kind == "cpu" and _interpreting()):
        return Backend.TRITON
    if kind in ("cpu", "meta"):  # meta tensors have no values, so any implementation works
        return Backend.CPU
    raise ValueError(
        f"aqtopo_kernels runs on CPU, CUDA and ROCm devices, but the tensors are on {kind!r}; move them, or "
        'pass backend="reference".'
    )


_WIDEST_FASTER = {torch.float32: 128, torch.bfloat16: 96, torch.float16: 96}
"""Widest head for which the compiled code on gfx90a takes fewer clocks than the vendor's, by dtype. float16
was not compared and uses the width of bfloat16."""


def better_than_torch(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> bool:
    """Return True if attention without bias is faster by this package than by PyTorch, as estimated.

    Args:
        device: of the tensors.
        dtype: of the tensors.
        head_dim: width of a head.

    True only on gfx90a, by a comparison of compiled code (`benchmarks/README.md`, from `python -m
    benchmarks.vendor_kernels`), without a measurement on a GPU. For a head of 96 columns, forward and
    backward, these kernels take 0.65 (bfloat16) and 0.63 (float32) of the clocks of AMD's Triton kernels in
    flash-attn. PyTorch uses AMD's AOTriton kernels, which were not compared. They split 96 columns as these
    kernels do, and flash-attn's pad them. At widths without padding, flash-attn's kernels are more similar to
    AOTriton's: the ratios are 0.77 and 0.92 at 64 columns, 1.02 (PyTorch is used) and 0.87 at 128. On gfx942
    PyTorch may run assembly kernels, which were not compared. Elsewhere PyTorch uses the vendors' best
    kernels, or on the CPU the same ones as this package.
    """
    on_rocm = torch.version.hip is not None and torch.device(device).type == "cuda"
    if not on_rocm or head_dim % 16 or head_dim > _WIDEST_FASTER.get(dtype, 0):
        return False
    return str(torch.cuda.get_device_properties(device).gcnArchName).startswith("gfx90a")


def implementation(operation: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """Return the module that computes `operation` for tensors on a device.

    Raises:
        ValueError: the device has no implementation, Triton is needed and not installed, or its interpreter
            does not support the dtype.
    """
    backend = backend_for(device)
    if backend is Backend.TRITON and find_spec("triton") is None:
        raise ValueError(
            f"{operation} needs Triton on {device.type!r}, and it is not installed. PyTorch's CUDA and ROCm "
            "wheels include it; otherwise run `pip install aqtopo[triton]`."
        )
    if backend is Backend.TRITON and dtype == torch.bfloat16 and _interpreting():
        raise ValueError(
            f"{operation} cannot run in bfloat16 in Triton's interpreter, which reads the bits as integers "
            "without an error; use float32 or float16, or unset TRITON_INTERPRET."
        )
    module = "launch" if backend is Backend.TRITON else "cpu"
    return import_module(f"aqtopo_kernels.{operation}.{module}")


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that makes a GPU current: Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def debugging() -> bool:
    """Return True if AQTOPO_KERNELS_DEBUG=1 enables checks that synchronise with the device."""
    return os.environ.get("AQTOPO_KERNELS_DEBUG") == "1"
