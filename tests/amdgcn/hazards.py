"""Wait states that the hardware does not insert: the compiler must put other instructions or `s_nop` between.

The hardware neither checks these dependences nor waits for them, so a kernel with too few wait states reads
old values without an error. Each instruction is one wait state, `s_nop n` is n + 1. The numbers are those of
LLVM's `llvm/lib/Target/AMDGPU/GCNHazardRecognizer.cpp` (checkMAIHazards90A, checkMAIVALUHazards,
checkVALUHazards, checkVMEMHazards, checkDPPHazards, checkDivFMasHazards, checkRWLaneHazards), which
implements the tables of manually inserted wait states in AMD's "Instinct MI200" and "Instinct MI300"
instruction set architecture guides. `P` is the number of passes (4 clocks) of the first matrix instruction.

| first | then | gfx90a | gfx942 |
|---|---|---|---|
| matrix writes | matrix reads as A or B; vector, memory, LDS reads or writes | P + 3 | P + 3 (fp32: P + 2) |
| matrix writes | matrix reads as C, not the same registers | P | P + 1 (fp32: P; fp32, then 16 bits: 0) |
| matrix reads as C | vector, memory, LDS writes | P - 1 | P - 1 (fp32: 0) |
| vector writes | matrix or DPP reads | 2 | 2 |
| vector writes scalar | memory reads it | 5 | 5 |
| vector writes scalar | lane number of v_readlane | 4 | 4 |
| vector writes vcc | v_div_fmas | 4 | 4 |
| store of more than 8 bytes | vector overwrites the data | 1 | 2 |
| vector writes scalar | vector reads it | 0 | 2 |
| vector writes | v_readlane, v_readfirstlane | 0 | 1 |
| transcendental writes | other vector reads | 0 | 1 |

Loads into such registers need `s_waitcnt` (`wave.py`). Left out are the rules of instructions that Triton
does not emit (double precision, dot products, v_cmpx, parts of registers as destinations, m0) and the one for
loads that a page fault repeats (XNACK, off by default), which LLVM applies to the last five instructions
only.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field

from tests.amdgcn.assembly import EmulationError, Instruction
from tests.amdgcn.operands import SCALARS, VCC, Registers, name_of, registers

Needs = list[tuple[str, frozenset[int]]]
Leaves = list[tuple[str, frozenset[int], int]]

_RESULT = "the result of a matrix instruction"
_SUM, _SUM_XDL = "the sum of a matrix instruction", "the sum of a matrix instruction of 16 bits"
_ADDEND = "the addend of a matrix instruction"
_VECTOR, _LANE = "a register of a vector instruction", "a lane of a vector instruction"
_FOR_MEMORY, _FOR_LANE = "a scalar for a memory instruction", "a scalar for a lane number"
_FOR_VECTOR, _FOR_DIVISION = "a scalar for a vector instruction", "vcc for a division"
_STORED = "the data of a store"
_TRANSCENDENTAL = "the result of a transcendental"
_TRANS = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_")


@dataclass(frozen=True)
class Issue:
    """What one instruction needs of those before it, and leaves to those behind it.

    Attributes:
        states: wait states that it takes itself.
        needs: kinds of dependence and the registers that must be free of them.
        leaves: kinds, registers and the wait states from the instruction's end until they are free.
        result: registers that a matrix instruction writes.
        addend: registers that it adds to (C).
    """

    states: int
    needs: Needs
    leaves: Leaves
    result: Registers | None = None
    addend: Registers | None = None


@dataclass
class WaitStates:
    """Wait states of a wave so far, and when registers become free: by kind and register."""

    now: int = 0
    _held: dict[str, dict[int, tuple[int, Issue]]] = field(default_factory=lambda: defaultdict(dict))

    def issue(self, issue: Issue) -> None:
        """Issue an instruction.

        Raises:
            EmulationError: a register is used too early.
        """
        for kind, wanted in issue.needs:
            held = self._held[kind]
            if held and not held.keys().isdisjoint(wanted):
                self._check(kind, held, wanted, issue)
        self.now += issue.states
        for kind, taken, states in issue.leaves:
            held = self._held[kind]
            until = (self.now + states, issue)
            for register in taken:
                held[register] = until

    def _check(
        self, kind: str, held: dict[int, tuple[int, Issue]], wanted: frozenset[int], issue: Issue
    ) -> None:
        for register in sorted(wanted & held.keys()):
            until, writer = held[register]
            if until <= self.now:
                del held[register]
            elif kind not in (_SUM, _SUM_XDL) or writer.result != issue.addend:
                raise EmulationError(
                    f"{name_of(register)} is {kind}: {until - self.now} more wait states are needed (s_nop)"
                )


def issue_of(
    instruction: Instruction, reads: frozenset[int], writes: frozenset[int], architecture: str
) -> Issue:
    """Return what an instruction needs and leaves on gfx90a or gfx942."""
    name, newer = instruction.mnemonic, architecture == "gfx942"
    if name.startswith("v_mfma"):
        return _matrix(instruction, newer)
    if name.startswith("v_"):
        return Issue(1, *_vector(instruction, reads, writes, newer))
    if name.startswith(("buffer_", "global_", "scratch_", "ds_")):
        needs: Needs = [(_RESULT, reads | writes), (_ADDEND, writes)]
        if not name.startswith("ds_"):
            needs.append((_FOR_MEMORY, _scalars(reads)))
        return Issue(1, needs, _stored(instruction, newer))
    return Issue(int(instruction.operands[0]) + 1 if name == "s_nop" else 1, [], [])


def _matrix(instruction: Instruction, newer: bool) -> Issue:
    shape = re.match(r"v_mfma_f32_(\d+)x", instruction.mnemonic)
    assert shape is not None
    single = instruction.mnemonic.endswith("f32")
    xdl = not (newer and single)
    passes = int(shape[1]) // (4 if newer and not single else 2)
    result, a, b, c = (registers(operand) for operand in instruction.operands)
    assert result is not None
    assert a is not None
    assert b is not None
    factors = frozenset(a.ids) | frozenset(b.ids)
    addend = frozenset(c.ids) if c else frozenset()
    written = frozenset(result.ids)
    needs: Needs = [(_RESULT, factors), (_VECTOR, factors | addend), (_SUM_XDL if xdl else _SUM, addend)]
    leaves: Leaves = [(_RESULT, written, passes + (3 if xdl else 2))]
    leaves.append((_SUM, written, passes + (newer and xdl)))
    leaves.append((_SUM_XDL, written, passes + newer if xdl else 0))
    leaves.append((_ADDEND, addend, passes - 1 if xdl else 0))
    return Issue(1, needs, leaves, result, c)


def _vector(
    instruction: Instruction, reads: frozenset[int], writes: frozenset[int], newer: bool
) -> tuple[Needs, Leaves]:
    name = instruction.mnemonic
    scalars = _scalars(writes)
    needs: Needs = [(_RESULT, reads | writes), (_ADDEND, writes), (_STORED, writes)]
    leaves: Leaves = [(_VECTOR, writes - scalars, 2)]
    if instruction.encoding == "dpp":
        needs.append((_VECTOR, reads | writes))  # a lane that receives nothing keeps its value
    if name.startswith("v_readlane"):
        needs.append((_FOR_LANE, _scalars(reads)))
    if name.startswith("v_div_fmas"):
        needs.append((_FOR_DIVISION, frozenset((SCALARS + VCC, SCALARS + VCC + 1))))
    if scalars:
        leaves += [(_FOR_MEMORY, scalars, 5), (_FOR_LANE, scalars, 4), (_FOR_DIVISION, scalars, 4)]
    if newer:
        leaves += [(_FOR_VECTOR, scalars, 2), (_LANE, writes - scalars, 1)]
        needs.append((_FOR_VECTOR, _scalars(reads)))
        if name.startswith("v_read"):
            needs.append((_LANE, reads))
        if _TRANS.match(name):
            leaves.append((_TRANSCENDENTAL, writes, 1))
        else:
            needs.append((_TRANSCENDENTAL, reads))
    return needs, leaves


def _stored(instruction: Instruction, newer: bool) -> Leaves:
    """Return the data of a store of more than 8 bytes, unless a scalar register is its offset."""
    wide = re.search(r"_store_dwordx[34]$", instruction.mnemonic)
    buffer = instruction.mnemonic.startswith("buffer_")
    if not wide or (buffer and registers(instruction.operands[-1])):
        return []
    data = registers(instruction.operands[0 if buffer else 1])
    assert data is not None
    return [(_STORED, frozenset(data.ids), 2 if newer else 1)]


def _scalars(ids: frozenset[int]) -> frozenset[int]:
    return frozenset(register for register in ids if register >= SCALARS)
