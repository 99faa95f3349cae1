"""Stand-in for the GPU driver: Triton compiles for its target, and launches do nothing."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

SHARED_BYTES = {"gfx90a": 65536, "gfx942": 65536, "sm_80": 166912, "sm_90": 232448}
"""Shared memory (LDS) limit of one program [bytes], by supported architecture."""

_devices = itertools.count(1000)


@dataclass(frozen=True)
class Compilation:
    """Kernel that was compiled or found in the cache.

    Attributes:
        function: name of the `triton.jit` function.
        constants: compile-time arguments by name.
        metadata: Triton's metadata: num_warps, num_stages, shared (bytes of LDS) and all compiler options.
        texts: files by type: amdgcn, ptx, cubin and intermediate representations.
        cached: True if the kernel was found in the cache.
    """

    function: str
    constants: dict[str, Any]
    metadata: dict[str, Any] = field(repr=False)
    texts: dict[str, Path] = field(repr=False)
    cached: bool


def target_of(arch: str) -> GPUTarget:
    """Return Triton's target for gfx90a, gfx942, sm_80 or sm_90."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


class StandIn:
    """Driver interface of Triton for an architecture without a device."""

    def __init__(self, arch: str) -> None:
        self._arch = arch
        self._device = next(_devices)
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        """Return the target to compile for."""
        return target_of(self._arch)

    def get_current_device(self) -> int:
        """Return a unique device number: a jitted function caches its compilations by device."""
        return self._device

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        del device
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return the properties that Triton checks before it loads a kernel."""
        del device
        return {"max_shared_mem": SHARED_BYTES[self._arch]}

    def load_binary(self, *_: object) -> tuple[None, None, int, int, int]:
        """Return placeholders for module, function, registers, spills and maximum number of threads."""
        return None, None, 0, 0, 1024

    def launcher_cls(self, *_: object) -> "_NoOpLauncher":
        """Return a launcher that does nothing."""
        return _NoOpLauncher()


class _NoOpLauncher:
    def __call__(self, *_: object) -> None:
        """No-op: there is no device."""


@contextmanager
def standing_in(arch: str, device: StandIn | None = None) -> Iterator[list[Compilation]]:
    """Compile the kernels launched in this context for an architecture; yield the list of compilations.

    `device` receives the launches; by default they do nothing.

    Raises:
        ValueError: the architecture is not supported.
    """
    if arch not in SHARED_BYTES:
        raise ValueError(
            f"There is no stand-in for the architecture {arch!r}; choose from {', '.join(SHARED_BYTES)}."
        )
    compilations: list[Compilation] = []

    def listen(
        *, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], times: object, cache_hit: bool
    ) -> None:
        del times
        names = src.fn.arg_names
        constants = {names[path[0]]: value for path, value in src.constants.items()}
        texts = {Path(name).suffix.removeprefix("."): Path(path) for name, path in metadata_group.items()}
        compilations.append(Compilation(src.fn.__name__, constants, dict(metadata), texts, cache_hit))

    previous, previous_listener = driver._active, knobs.compilation.listener
    driver.set_active(device or StandIn(arch))
    knobs.compilation.listener = listen
    try:
        yield compilations
    finally:
        driver._active = previous
        knobs.compilation.listener = previous_listener
