"""Programs: instructions with their actions, and the registers that they read and write."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.amdgcn import matrix, scalar, transfer, vector
from tests.amdgcn.assembly import Assembly, EmulationError, Instruction, parse
from tests.amdgcn.hazards import Issue, issue_of
from tests.amdgcn.operands import EXEC, SCALARS, VCC, registers
from tests.amdgcn.scalar import BARRIER, END

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

__all__ = ["BARRIER", "END", "Operation", "Program", "assemble"]

Action = Callable[["Wave"], int | None]
"""Executes an instruction; returns None for the following one, the index of another, END or BARRIER."""

_WITHOUT_RESULT = re.compile(
    r"s_(cmp|bitcmp|c?branch|waitcnt|nop|barrier|endpgm|setprio|sched)|.*_store_|ds_write"
)
_TWO_RESULTS = ("v_mad_u64_u32", "v_div_scale_f32")
_IN_PLACE = re.compile(r"v_fmac_|v_fma_mix(lo|hi)_|s_(addk|mulk)_")
_LOADS = re.compile(r"s_load_|ds_(read|bpermute|swizzle)|(buffer|global|scratch)_load_")


@dataclass(frozen=True, slots=True)
class Operation:
    """An instruction that can be executed.

    Attributes:
        instruction: the instruction.
        action: executes it.
        reads: registers that must have been written.
        writes: registers that it writes.
        uses: registers that must not have a load in flight: all but the destinations of loads.
        issue: wait states that it needs and leaves.
    """

    instruction: Instruction
    action: Action
    reads: frozenset[int]
    writes: frozenset[int]
    uses: frozenset[int]
    issue: Issue

    @property
    def place(self) -> str:
        """Line and text of the instruction."""
        return _place(self.instruction)


@dataclass(frozen=True)
class Program:
    """A kernel for one architecture, ready to be executed."""

    architecture: str
    assembly: Assembly
    operations: list[Operation]


def assemble(text: str, architecture: str) -> Program:
    """Parse a kernel's text and find the action of each instruction.

    Raises:
        EmulationError: an instruction is unknown.
    """
    assembly = parse(text)
    operations = []
    for instruction in assembly.instructions:
        try:
            operations.append(_operation(instruction, assembly.labels, architecture))
        except EmulationError as error:
            raise EmulationError(f"{_place(instruction)}: {error}") from error
        except (IndexError, KeyError, ValueError) as error:
            raise EmulationError(
                f"{_place(instruction)}: unknown operands or modifiers ({error!r})"
            ) from error
    return Program(architecture, assembly, operations)


def _place(instruction: Instruction) -> str:
    return f"line {instruction.line}: {instruction.text}"


def _operation(instruction: Instruction, labels: dict[str, int], architecture: str) -> Operation:
    name = instruction.mnemonic
    action: Action
    if name.startswith("s_"):
        action = scalar.action(instruction, labels)
    elif name.startswith("v_mfma"):
        action = matrix.action(instruction)
    elif name.startswith("v_"):
        action = vector.action(instruction)
    else:
        action = transfer.action(instruction)
    reads, writes = _registers(instruction)
    uses = reads if _LOADS.match(name) else reads | writes
    return Operation(
        instruction, action, reads, writes, uses, issue_of(instruction, reads, writes, architecture)
    )


def _registers(instruction: Instruction) -> tuple[frozenset[int], frozenset[int]]:
    """Return the registers that an instruction reads and writes; `exec` is known to be written."""
    name = instruction.mnemonic
    results = 0 if _WITHOUT_RESULT.match(name) else 2 if name in _TWO_RESULTS else 1
    writes = _ids(instruction.operands[:results])
    reads = _ids(instruction.operands[0 if _IN_PLACE.match(name) else results :])
    if name == "v_mad_u64_u32":  # LLVM also uses it for 32 bits, with any upper half: see `vector.py`
        reads -= {max(_ids(instruction.operands[-1:]), default=-1)}
    if name.endswith("saveexec_b64"):
        writes |= {SCALARS + EXEC, SCALARS + EXEC + 1}
    if name.startswith(("v_div_fmas", "s_cbranch_vcc")):
        reads |= {SCALARS + VCC, SCALARS + VCC + 1}
    return reads, writes


def _ids(operands: tuple[str, ...]) -> frozenset[int]:
    found = map(registers, operands)
    return frozenset(register for operand in found if operand for register in operand.ids)
