"""A wave: registers, loads in flight, and the loop over its instructions."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.hazards import WaitStates
from tests.amdgcn.memory import LDS, Memory, Touch
from tests.amdgcn.operands import DOUBLE_WORD, EXEC, SCALARS, U32, lanes_of, name_of
from tests.amdgcn.program import BARRIER, END, Program

_POISON = 0x7FC0DEAD
"""A NaN: a lane that was not written shows in the result, even if other lanes of its register were."""


@dataclass(frozen=True)
class Transfer:
    """A load, store or LDS access that the wave has not waited for."""

    registers: frozenset[int]
    touches: tuple[Touch, ...]
    any_order: bool  # scalar loads


@dataclass
class Wave:
    """State of one wave.

    Attributes:
        number: index in the workgroup.
        memory: tensors of the launch.
        lds: LDS of the workgroup.
        scratch: private memory, (words, lanes).
        flushes: matrix instructions of 16 bits replace denormals by zeros (CDNA2).
        visits: how often each instruction was executed.
        limit: visits of a branch that show an endless loop.
        vector: (512, 64); `operands.py` describes the numbering.
        scalar: 128 values of 32 bits.
        scc: the scalar condition.
        active: lanes that `exec` enables; `all_active` if it enables all.
        memory_transfers: in the order of vmcnt.
        lds_transfers: in the order of lgkmcnt; scalar loads are among them.
        unwritten: registers that were never written.
    """

    number: int
    memory: Memory
    lds: LDS
    scratch: np.ndarray
    flushes: bool
    visits: list[int]
    limit: int
    vector: np.ndarray = field(default_factory=lambda: np.full((512, 64), _POISON, U32))
    scalar: list[int] = field(default_factory=lambda: [_POISON] * 128)
    scc: int = 0
    memory_transfers: deque[Transfer] = field(default_factory=deque)
    lds_transfers: deque[Transfer] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.scalar[EXEC : EXEC + 2] = [0xFFFFFFFF] * 2
        self.update_exec()
        self.unwritten = set(range(SCALARS + EXEC))
        self._in_flight: dict[int, int] = {}  # number of loads by destination
        self._wait_states = WaitStates()

    def set_scalars(self, first: int, values: list[int]) -> None:
        """Write scalar registers that the hardware sets before the first instruction."""
        self.scalar[first : first + len(values)] = values
        self.unwritten.difference_update(range(SCALARS + first, SCALARS + first + len(values)))

    def set_lanes(self, first: int, values: np.ndarray) -> None:
        """Write a vector register that the hardware sets before the first instruction."""
        self.vector[first] = values
        self.unwritten.discard(first)

    def update_exec(self) -> None:
        """Take over a changed `exec`."""
        self.exec = self.scalar[EXEC] | self.scalar[EXEC + 1] << 32
        self.all_active = self.exec == DOUBLE_WORD
        self.active = lanes_of(self.exec)

    def start_memory(self, registers: frozenset[int] = frozenset()) -> None:
        """Start a load into registers, or a store."""
        self._start(self.memory_transfers, Transfer(registers, (), False))

    def start_lds(
        self, registers: frozenset[int], touches: tuple[Touch, ...] = (), *, any_order: bool = False
    ) -> None:
        """Start an LDS access or a scalar load."""
        self._start(self.lds_transfers, Transfer(registers, touches, any_order))

    def _start(self, queue: deque[Transfer], transfer: Transfer) -> None:
        other = self.lds_transfers if queue is self.memory_transfers else self.memory_transfers
        for register in transfer.registers:
            # Loads of one kind arrive in order, so a later one may overwrite an earlier one.
            if register in self._in_flight and (
                transfer.any_order or any(register in earlier.registers for earlier in other)
            ):
                raise EmulationError(f"{name_of(register)} has a load of another kind in flight")
            self._in_flight[register] = self._in_flight.get(register, 0) + 1
        queue.append(transfer)

    def wait(self, memory: int | None, lds: int | None) -> None:
        """Wait until at most this many transfers are in flight; None for any number."""
        if memory is not None:
            self._finish(self.memory_transfers, memory)
        # Scalar loads arrive in any order: only a count of 0 says that one is there.
        if lds == 0 or (lds and not any(transfer.any_order for transfer in self.lds_transfers)):
            self._finish(self.lds_transfers, lds)

    def _finish(self, queue: deque[Transfer], count: int) -> None:
        while len(queue) > count:
            for register in queue.popleft().registers:
                if self._in_flight[register] == 1:
                    del self._in_flight[register]
                else:
                    self._in_flight[register] -= 1

    def run(self, program: Program, entry: int) -> Iterator[None]:
        """Execute until the end; yield at every barrier.

        Raises:
            EmulationError: one of the checks failed.
        """
        at, operations = entry, program.operations
        while at < len(operations):
            operation = operations[at]
            self.visits[at] += 1
            try:
                if self._in_flight and not self._in_flight.keys().isdisjoint(operation.uses):
                    self._refuse(
                        "has a load in flight that was not waited for",
                        self._in_flight.keys() & operation.uses,
                    )
                if not self.unwritten.isdisjoint(operation.reads):
                    self._refuse("was never written", self.unwritten & operation.reads)
                self.unwritten.difference_update(operation.writes)
                self._wait_states.issue(operation.issue)
                target = operation.action(self)
            except EmulationError as error:
                raise EmulationError(f"wave {self.number}, {operation.place}: {error}") from error
            if target is None:
                at += 1
            elif target >= 0:
                if self.visits[at] > self.limit:
                    raise EmulationError(f"{operation.place}: the loop does not end")
                at = target
            elif target == END:
                return
            else:
                assert target == BARRIER
                yield
                at += 1
        raise EmulationError(f"wave {self.number} runs behind the last instruction")

    @staticmethod
    def _refuse(why: str, which: set[int]) -> None:
        raise EmulationError(f"{name_of(min(which))} {why}")
