"""Loads, stores and LDS instructions."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.amdgcn.assembly import EmulationError, Instruction
from tests.amdgcn.memory import Addresses
from tests.amdgcn.operands import LANE, U32, lanes, put_lanes, registers, row, scalar, scalar_pair

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

Action = Callable[["Wave"], None]
Locate = Callable[["Wave"], tuple[Addresses, NDArray[np.bool_], int]]
"""Returns address and activity of each lane, and the base, which lies in the tensor."""

SCRATCH_RESOURCE = [0x5C5C0000, 0x0000005C, 0x7FFFFFFF, 0x5C5C5C5C]
"""Buffer descriptor of the private memory. A kernel only copies it."""

_RAW_BUFFER = 0x27000
"""Flags of the buffer descriptors that Triton makes: 32-bit elements, no swizzle."""

_SIZES = {"ubyte": 1, "byte": 1, "ushort": 2, "short": 2,
          "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}  # fmt: skip


def action(instruction: Instruction) -> Action:
    """Return the action of a load, a store or an LDS instruction."""
    name = instruction.mnemonic
    if name in ("ds_bpermute_b32", "ds_swizzle_b32"):
        return _exchange(instruction)
    if name.startswith("ds_"):
        return _lds(instruction)
    access = re.fullmatch(r"(buffer|global|scratch)_(load|store)_(\w+)", name)
    if access is None or access[3] not in _SIZES:
        raise EmulationError(f"unknown instruction {name}")
    instruction.allow("offset", "offen")
    if access[1] == "scratch" or (access[1] == "buffer" and instruction.operands[1] == "off"):
        return _private(instruction, store=access[2] == "store", size=_SIZES[access[3]])
    return _memory(instruction, access[1], store=access[2] == "store", size=_SIZES[access[3]])


def _memory(instruction: Instruction, space: str, *, store: bool, size: int) -> Action:
    data = row(instruction.operands[1 if store and space == "global" else 0])
    locate = (
        _buffer_lanes(instruction, size) if space == "buffer" else _global_lanes(instruction, store=store)
    )
    rows = slice(data, data + max(size // 4, 1))
    written = frozenset() if store else frozenset(range(rows.start, rows.stop))

    def run(wave: "Wave") -> None:
        at, inside, base = locate(wave)
        if store:
            if inside.any():
                wave.memory.store(at[inside], wave.vector[rows][:, inside], size, base)
        else:
            # Lanes outside the buffer receive zeros.
            values = np.zeros((rows.stop - rows.start, 64), U32)
            if inside.any():
                values[:, inside] = wave.memory.load(at[inside], size, base)
            np.copyto(wave.vector[rows], values, where=wave.active)
        wave.start_memory(written)

    return run


def _buffer_lanes(instruction: Instruction, size: int) -> Locate:
    _, offsets, resource, shared = instruction.operands
    found = registers(resource)
    if "offen" not in instruction.modifiers or found is None or found.count != 4:
        raise EmulationError("a buffer access without an offset for each lane is not supported")
    get, common, constant, place = lanes(offsets), scalar(shared), instruction.number("offset"), found.first

    def locate(wave: "Wave") -> tuple[Addresses, NDArray[np.bool_], int]:
        low, high, records, flags = wave.scalar[place : place + 4]
        if high >> 16 or flags != _RAW_BUFFER:
            raise EmulationError(f"unknown buffer descriptor {high:#x}, {flags:#x}")
        base, start = low | (high & 0xFFFF) << 32, common(wave)
        at = get(wave).astype(np.int64) + constant
        return at + (base + start), wave.active & (at + size <= records - start), base

    return locate


def _global_lanes(instruction: Instruction, *, store: bool) -> Locate:
    constant = instruction.number("offset")
    places = (instruction.operands[0], *instruction.operands[2:]) if store else instruction.operands[1:]
    if places[1] == "off":
        low, high = lanes(places[0], 0), lanes(places[0], 1)

        def locate(wave: "Wave") -> tuple[Addresses, NDArray[np.bool_], int]:
            at = (low(wave).astype(np.int64) | high(wave).astype(np.int64) << 32) + constant
            return at, wave.active, int(at[int(np.argmax(wave.active))])

        return locate
    base, get = scalar_pair(places[1]), lanes(places[0])
    return lambda wave: (get(wave).astype(np.int64) + (base(wave) + constant), wave.active, base(wave))


def _private(instruction: Instruction, *, store: bool, size: int) -> Action:
    """Spilled registers: words of the lane's own memory."""
    operands = instruction.operands
    buffer = registers(operands[2]) if instruction.mnemonic.startswith("buffer") else None
    if size % 4 or (buffer and operands[3] != "0") or operands.count("off") != (1 if buffer else 2):
        raise EmulationError("an access to private memory with an offset in a register is not supported")
    data = row(operands[1 if store and not buffer else 0])
    rows, first = slice(data, data + size // 4), instruction.number("offset") // 4
    written = frozenset() if store else frozenset(range(rows.start, rows.stop))

    def run(wave: "Wave") -> None:
        if buffer and wave.scalar[buffer.first : buffer.first + 4] != SCRATCH_RESOURCE:
            raise EmulationError("a buffer access without an offset for each lane is not supported")
        place = slice(first, first + size // 4)
        if place.stop > len(wave.scratch):
            raise EmulationError(f"private memory has only {4 * len(wave.scratch)} bytes")
        source, target = (wave.vector[rows], wave.scratch[place])[:: 1 if store else -1]
        np.copyto(target, source, where=wave.active)
        wave.start_memory(written)

    return run


def _exchange(instruction: Instruction) -> Action:
    """Read a register of another lane through LDS's crossbar."""
    target, *operands = instruction.operands
    place, data = row(target), row(operands[-1])
    put, source = put_lanes(place), _source_lanes(instruction)

    def run(wave: "Wave") -> None:
        chosen = source(wave)
        put(wave, np.where(wave.active[chosen], wave.vector[data][chosen], U32(0)))
        wave.start_lds(frozenset((place,)))

    return run


def _source_lanes(instruction: Instruction) -> Callable[["Wave"], NDArray[np.int64]]:
    if instruction.mnemonic == "ds_bpermute_b32":
        instruction.allow()
        index = lanes(instruction.operands[1])
        return lambda wave: (index(wave) >> U32(2) & U32(63)).astype(np.int64)
    swap = re.fullmatch(r"swizzle\(SWAP,(\d+)\)", instruction.modifiers["offset"])
    if swap is None:
        raise EmulationError(f"unknown offset {instruction.modifiers['offset']}")
    other = LANE ^ int(swap[1])
    return lambda wave: other


def _lds(instruction: Instruction) -> Action:
    access = re.fullmatch(r"ds_(read|write)(2)?(st64)?_[bui](\d+)", instruction.mnemonic)
    if access is None:
        raise EmulationError(f"unknown instruction {instruction.mnemonic}")
    size = int(access[4]) // 8
    if access[2]:
        instruction.allow("offset0", "offset1")
        unit = size * (64 if access[3] else 1)
        offsets = [instruction.number(name) * unit for name in ("offset0", "offset1")]
    else:
        instruction.allow("offset")
        offsets = [instruction.number("offset")]
    build = _lds_write if access[1] == "write" else _lds_read
    return build(instruction.operands, offsets, size)


def _lds_write(operands: tuple[str, ...], offsets: list[int], size: int) -> Action:
    at, words = row(operands[0]), max(size // 4, 1)
    data = [slice(first, first + words) for first in map(row, operands[1:])]

    def run(wave: "Wave") -> None:
        addresses = _addresses(wave, at)
        touches = [
            wave.lds.write(wave.number, addresses + offset, wave.vector[rows][:, wave.active], size)
            for rows, offset in zip(data, offsets, strict=True)
        ]
        wave.start_lds(frozenset(), tuple(touches))

    return run


def _lds_read(operands: tuple[str, ...], offsets: list[int], size: int) -> Action:
    target, source = operands
    first, at, words = row(target), row(source), max(size // 4, 1)
    written = frozenset(range(first, first + words * len(offsets)))

    def run(wave: "Wave") -> None:
        addresses = _addresses(wave, at)
        touches = []
        for i, offset in enumerate(offsets):
            values, touch = wave.lds.read(wave.number, addresses + offset, size)
            wave.vector[first + i * words : first + (i + 1) * words, wave.active] = values
            touches.append(touch)
        wave.start_lds(written, tuple(touches))

    return run


def _addresses(wave: "Wave", at: int) -> Addresses:
    return wave.vector[at][wave.active].astype(np.int64)
