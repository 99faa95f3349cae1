"""Driver for Triton whose launches run on the emulator.

Under `emulating("gfx90a")` the package's own launch functions take CPU tensors: Triton compiles for the
architecture as it would on a node, and the driver executes the text.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from aqtopo_kernels.aot.stand_in import Compilation, StandIn, standing_in
from tests.amdgcn.memory import Memory
from tests.amdgcn.program import Program, assemble
from tests.amdgcn.workgroup import Execution, launch

_FORMATS = {"i1": "<?", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u1": "<?", "u32": "<I",
            "u64": "<Q", "fp32": "<f", "fp64": "<d"}  # fmt: skip
_POINTER = "<Q"
_UNKNOWN = 0xDEADDEADDEADDEAD
"""Hidden arguments that the kernels do not use."""
Edit = Callable[[str, str], str]
"""Changes the text of a kernel, given its name and text."""


@dataclass(frozen=True)
class Launch:
    """A launch: name of the `triton.jit` function, its program and what was executed."""

    function: str
    program: Program
    execution: Execution


class EmulatedDevice(StandIn):
    """Executes launches.

    Attributes:
        launches: what was executed, in order.
    """

    def __init__(self, architecture: str, edit: Edit | None = None) -> None:
        super().__init__(architecture)
        self._architecture = architecture
        self._edit = edit
        self.compilations: list[Compilation] = []
        self.launches: list[Launch] = []

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:  # type: ignore[override]
        """Return the launcher of a compiled kernel."""
        name, kinds = source.fn.__name__, list(source.signature.values())
        compilation = next(found for found in self.compilations if found.metadata["hash"] == metadata.hash)
        text = compilation.texts["amdgcn"].read_text(encoding="utf-8")
        program = _assembled(text if self._edit is None else self._edit(name, text), self._architecture)

        def run(x: int, y: int, z: int, *others: Any) -> None:
            arguments = others[-len(kinds) :]
            memory, values = _arguments(kinds, arguments)
            kernarg = _packed(program, values, (x, y, z), metadata.num_warps)
            done = launch(program, (x, y, z), kernarg, memory, metadata.shared, metadata.num_warps)
            self.launches.append(Launch(name, program, done))

        return run


@cache
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
def emulating(architecture: str, edit: Edit | None = None) -> Iterator[EmulatedDevice]:
    """Execute the kernels launched in this context on the emulator of gfx90a or gfx942.

    `edit` changes their text first; `mutants.py` uses it.
    """
    device = EmulatedDevice(architecture, edit)
    with standing_in(architecture, device) as device.compilations:
        yield device
