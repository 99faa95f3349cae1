"""A stand-in for the GPU driver: Triton compiles for its target, and launches do nothing."""

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
"""Shared memory (LDS) that one program may use, by architecture: what can be stood in for."""

_devices = itertools.count(1000)


@dataclass(frozen=True)
class Compilation:
    """One kernel that was compiled, or found in the cache.

    Attributes:
        function: name of the `triton.jit` function.
        constants: its compile-time arguments by name.
        metadata: Triton's, with num_warps, num_stages, shared (bytes of LDS) and every compiler option.
        texts: files by kind: amdgcn, ptx, cubin and the intermediate forms.
        cached: nothing was compiled.
    """

    function: str
    constants: dict[str, Any]
    metadata: dict[str, Any] = field(repr=False)
    texts: dict[str, Path] = field(repr=False)
    cached: bool


def target_of(arch: str) -> GPUTarget:
    """Triton's target for gfx90a, gfx942, sm_80 or sm_90."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


class StandIn:
    """What Triton asks of a driver, answered for an architecture that is not there."""

    def __init__(self, arch: str) -> None:
        self._arch = arch
        self._device = next(_devices)
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        """The target to compile for."""
        return target_of(self._arch)

    def get_current_device(self) -> int:
        """A number of its own: a jitted function keeps what it compiled by device."""
        return self._device

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        del device
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What decides whether a kernel could be loaded."""
        del device
        return {"max_shared_mem": SHARED_BYTES[self._arch]}

    def load_binary(self, *_: object) -> tuple[None, None, int, int, int]:
        """Module, function, registers, spills and largest number of threads, of nothing."""
        return None, None, 0, 0, 1024

    def launcher_cls(self, *_: object) -> "_Nowhere":
        """Launches into nothing."""
        return _Nowhere()


class _Nowhere:
    def __call__(self, *_: object) -> None:
        """Does nothing: there is no device."""


@contextmanager
def standing_in(arch: str) -> Iterator[list[Compilation]]:
    """Compiles what is launched within for an architecture, and lists it.

    Raises:
        ValueError: the architecture cannot be stood in for.
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
    driver.set_active(StandIn(arch))
    knobs.compilation.listener = listen
    try:
        yield compilations
    finally:
        driver._active = previous
        knobs.compilation.listener = previous_listener
