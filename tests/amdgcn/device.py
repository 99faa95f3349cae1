"""Driver for Triton whose launches run on the emulator.

Under `emulating("gfx90a")` the package's own launch functions take CPU tensors: Triton compiles for the
architecture as it would on a node, and the driver executes the text.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from aqtopo_kernels.aot.stand_in import Compilation, StandIn, standing_in
from tests.amdgcn.memory import Memory
from tests.amdgcn.program import Program, assemble
from tests.amdgcn.workgroup import Execution, launch

_FORMATS = {"i1": "<?", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u1": "<?", "u32": "<I",
            "u64": "<Q", "fp32": "<f", "fp64": "<d"}  # fmt: skip
_POINTER = "<Q"
_UNKNOWN = 0xDEADDEADDEADDEAD
"""Hidden arguments that the kernels do not use."""


@dataclass(frozen=True, eq=False)
class Launch:
    """A launch, which can be executed again with another text.

    Attributes:
        function: name of the `triton.jit` function.
        architecture: gfx90a or gfx942.
        text: the kernel's assembly.
        kinds: Triton's types of the arguments.
        arguments: tensors, numbers and compile-time values.
        grid: workgroups along x, y and z.
        lds_bytes: LDS of a workgroup.
        warps: waves of a workgroup.
    """

    function: str
    architecture: str
    text: str
    kinds: list[str]
    arguments: tuple[Any, ...]
    grid: tuple[int, int, int]
    lds_bytes: int
    warps: int

    def execute(self, limit: int = 1 << 24) -> Execution:
        """Execute the kernel on the arguments; `limit` as in `workgroup.launch`."""
        program = _assembled(self.text, self.architecture)
        memory, values = _arguments(self.kinds, self.arguments)
        kernarg = _packed(program, values, self.grid, self.warps)
        return launch(program, self.grid, kernarg, memory, self.lds_bytes, self.warps, limit)

    def copied(self) -> "Launch":
        """Return the launch with copies of its tensors, strides and offsets included."""
        storages: dict[int, torch.UntypedStorage] = {}

        def copy_of(argument: Any) -> Any:
            if not isinstance(argument, torch.Tensor):
                return argument
            storage = argument.untyped_storage()
            own = storages.setdefault(storage.data_ptr(), storage.clone())
            copied = torch.empty(0, dtype=argument.dtype)
            return copied.set_(own, argument.storage_offset(), argument.shape, argument.stride())

        return replace(self, arguments=tuple(map(copy_of, self.arguments)))

    def contents(self) -> list[torch.Tensor]:
        """Return the memory behind the tensors in bytes, without copying it."""
        tensors = [argument for argument in self.arguments if isinstance(argument, torch.Tensor)]
        return [torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()) for tensor in tensors]


class EmulatedDevice(StandIn):
    """Executes launches.

    Attributes:
        compilations: what Triton compiled.
        launches: the launches before they were executed, if they are recorded.
    """

    def __init__(self, architecture: str, *, record: bool = False, execute: bool = True) -> None:
        super().__init__(architecture)
        self._architecture, self._record, self._execute = architecture, record, execute
        self.compilations: list[Compilation] = []
        self.launches: list[Launch] = []

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:  # type: ignore[override]
        """Return the launcher of a compiled kernel."""
        name, kinds = source.fn.__name__, list(source.signature.values())
        compilation = next(found for found in self.compilations if found.metadata["hash"] == metadata.hash)
        text = compilation.texts["amdgcn"].read_text(encoding="utf-8")

        def run(x: int, y: int, z: int, *others: Any) -> None:
            arguments, grid = others[-len(kinds) :], (x, y, z)
            made = Launch(
                name, self._architecture, text, kinds, arguments, grid, metadata.shared, metadata.num_warps
            )
            if self._record:
                self.launches.append(made.copied())
            if self._execute:
                made.execute()

        return run


@lru_cache(16)
def _assembled(text: str, architecture: str) -> Program:
    return assemble(text, architecture)


def _arguments(kinds: list[str], arguments: tuple[Any, ...]) -> tuple[Memory, list[bytes]]:
    """Return the tensors' memory and the arguments in bytes; compile-time arguments are left out."""
    memory, values = Memory(), []
    for kind, value in zip(kinds, arguments, strict=True):
        if kind.startswith("*"):
            storage = value.untyped_storage()
            memory.allow(storage.data_ptr(), storage.nbytes())
            values.append(struct.pack(_POINTER, value.data_ptr()))
        elif kind != "constexpr":
            values.append(struct.pack(_FORMATS[kind], value))
    return memory, values


def _packed(program: Program, values: list[bytes], grid: tuple[int, int, int], warps: int) -> bytes:
    """Return the kernarg segment: the arguments, unused pointers of Triton, LLVM's hidden arguments."""
    hidden = dict(zip((f"hidden_block_count_{axis}" for axis in "xyz"), grid, strict=True))
    hidden |= {"hidden_group_size_x": warps * 64, "hidden_group_size_y": 1, "hidden_group_size_z": 1}
    segment = bytearray(program.assembly.descriptor["kernarg_size"])
    remaining = iter(values)
    for argument in program.assembly.arguments:
        if argument.kind.startswith("hidden"):
            value = hidden.get(argument.kind, _UNKNOWN).to_bytes(8, "little")[: argument.size]
        else:
            value = next(remaining, bytes(8))
        assert len(value) == argument.size
        segment[argument.offset : argument.offset + argument.size] = value
    assert next(remaining, None) is None
    return bytes(segment)


@contextmanager
def emulating(architecture: str, *, record: bool = False, execute: bool = True) -> Iterator[EmulatedDevice]:
    """Execute the kernels launched in this context on the emulator of gfx90a or gfx942.

    `record` keeps the launches, as they were before they were executed; without `execute` they are not
    executed.
    """
    device = EmulatedDevice(architecture, record=record, execute=execute)
    with standing_in(architecture, device) as device.compilations:
        yield device
