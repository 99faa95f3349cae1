"""Launch: workgroups one after another, their waves in turns from barrier to barrier."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.memory import LDS, Memory
from tests.amdgcn.operands import LANE, U32, WORD
from tests.amdgcn.program import Program
from tests.amdgcn.transfer import SCRATCH_RESOURCE
from tests.amdgcn.wave import Wave

_PRELOADED_ENTRY = ".LBB0_0"
"""Label behind the prologue that loads arguments where the hardware has not preloaded them."""


@dataclass
class Execution:
    """What a launch executed.

    Attributes:
        program: the kernel.
        waves: number of waves.
        visits: executions of each instruction, summed over the waves.
        lds_loaded: bytes; likewise the other three.
    """

    program: Program
    waves: int
    visits: list[int]
    lds_loaded: int = 0
    lds_stored: int = 0
    memory_loaded: int = 0
    memory_stored: int = 0

    def classes(self) -> Counter[str]:
        """Return the number of executed instructions by class, summed over the waves."""
        counts: Counter[str] = Counter()
        for operation, visits in zip(self.program.operations, self.visits, strict=True):
            counts[_class_of(operation.instruction.mnemonic)] += visits
        return counts


def _class_of(mnemonic: str) -> str:
    prefixes = {"v_mfma": "matrix", "v_": "vector", "ds_": "LDS", "s_load": "memory", "s_wait": "wait",
                "s_nop": "wait", "s_barrier": "wait", "s_": "scalar"}  # fmt: skip
    return next((name for prefix, name in prefixes.items() if mnemonic.startswith(prefix)), "memory")


def launch(
    program: Program,
    grid: tuple[int, int, int],
    kernarg: bytes,
    memory: Memory,
    lds_bytes: int,
    warps: int,
    limit: int = 1 << 24,
) -> Execution:
    """Execute a kernel.

    Args:
        program: the kernel.
        grid: number of workgroups along x, y and z.
        kernarg: the arguments, laid out as the kernel's metadata says.
        memory: tensors that it may touch.
        lds_bytes: LDS of a workgroup.
        warps: waves of a workgroup.
        limit: executions of one branch, by all waves, that show an endless loop.

    Raises:
        EmulationError: one of the checks failed.
    """
    arguments = np.frombuffer(kernarg, np.uint8)
    memory.allow(arguments.ctypes.data, arguments.nbytes)
    done = Execution(program, warps * grid[0] * grid[1] * grid[2], [0] * len(program.operations))
    entry = 0
    if program.assembly.descriptor.get("user_sgpr_kernarg_preload_length"):
        entry = program.assembly.labels[_PRELOADED_ENTRY]
    flushes = program.architecture == "gfx90a"
    scratch_words = program.assembly.descriptor["private_segment_fixed_size"] // 4
    with np.errstate(all="ignore"):
        for z, y, x in product(*map(range, grid[::-1])):
            lds = LDS(max(lds_bytes, 4))
            waves = []
            for number in range(warps):
                scratch = np.full((scratch_words, 64), np.nan, np.float32).view(U32)
                wave = Wave(number, memory, lds, scratch, flushes, done.visits, limit)
                _initialise(wave, program.assembly.descriptor, arguments, (x, y, z))
                waves.append(wave)
            _run(waves, [wave.run(program, entry) for wave in waves], lds)
            done.lds_loaded += lds.loaded
            done.lds_stored += lds.stored
    done.memory_loaded, done.memory_stored = memory.loaded, memory.stored
    return done


def _initialise(
    wave: Wave, descriptor: dict[str, int], arguments: np.ndarray, place: tuple[int, int, int]
) -> None:
    """Set the registers that the hardware sets: descriptor of private memory, arguments, workgroup, lane."""
    at, place_in = arguments.ctypes.data, 0
    if descriptor.get("user_sgpr_private_segment_buffer"):
        wave.set_scalars(0, SCRATCH_RESOURCE)
        place_in = 4
    wave.set_scalars(place_in, [at & WORD, at >> 32])
    length = descriptor.get("user_sgpr_kernarg_preload_length", 0)
    if length:
        wave.set_scalars(place_in + 2, [int(word) for word in arguments[: 4 * length].view(U32)])
    system = [
        index
        for axis, index in zip("xyz", place, strict=True)
        if descriptor.get(f"system_sgpr_workgroup_id_{axis}")
    ]
    wave.set_scalars(descriptor["user_sgpr_count"], [*system, 0])  # then the offset of private memory, if any
    wave.set_lanes(0, wave.number * 64 + LANE)


def _run(waves: Sequence[Wave], runs: Sequence[Iterator[None]], lds: LDS) -> None:
    """Run the waves of a workgroup from barrier to barrier."""
    running = dict(zip((wave.number for wave in waves), runs, strict=True))
    while running:
        waiting = []
        for wave in waves:
            if wave.number in running:
                if next(running[wave.number], StopIteration) is StopIteration:
                    del running[wave.number]
                else:
                    waiting.append(wave)
        if waiting and len(waiting) != len(waves):
            raise EmulationError(
                f"waves {[wave.number for wave in waiting]} wait at a barrier that others never reach"
            )
        lds.next_epoch()
        for wave in waiting:  # an access in flight may happen before or after the barrier
            for transfer in wave.lds_transfers:
                for touch in transfer.touches:
                    lds.mark(wave.number, touch)
