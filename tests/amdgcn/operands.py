"""Registers and operands: tokens of the text to places in a wave.

The vector file has 512 rows of 64 lanes: v0 to v255 and, behind them, the accumulators a0 to a255. Scalar
registers are numbered as in the instruction encoding (vcc 106, m0 124, exec 126). In sets of both files,
scalar registers are numbered from 512.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.amdgcn.assembly import EmulationError

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

Lanes = NDArray[np.uint32]
Floats = NDArray[np.float32]
U32, F32 = np.uint32, np.float32
LANE = np.arange(64)
WORD, DOUBLE_WORD = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
VCC, M0, EXEC = 106, 124, 126
ACCUMULATORS, SCALARS = 256, 512
_SPECIAL = {"vcc": (VCC, 2), "vcc_lo": (VCC, 1), "vcc_hi": (VCC + 1, 1), "m0": (M0, 1),
            "exec": (EXEC, 2), "exec_lo": (EXEC, 1), "exec_hi": (EXEC + 1, 1)}  # fmt: skip


@dataclass(frozen=True)
class Registers:
    """Adjacent registers of one file."""

    vector: bool
    first: int
    count: int

    @property
    def ids(self) -> range:
        """Numbers in sets of both files."""
        start = self.first + (0 if self.vector else SCALARS)
        return range(start, start + self.count)


@lru_cache(4096)
def registers(token: str) -> Registers | None:
    """Return the registers that a token names; None for a constant, a label or `off`."""
    token = token.strip("-|")
    if token in _SPECIAL:
        return Registers(False, *_SPECIAL[token])
    match = re.fullmatch(r"([vsa])(?:(\d+)|\[(\d+):(\d+)\])", token)
    if match is None:
        return None
    file, single, first, last = match.groups()
    start = int(single or first)
    count = 1 if single else int(last) - start + 1
    return Registers(file != "s", start + (ACCUMULATORS if file == "a" else 0), count)


def name_of(register: int) -> str:
    """Return the name of a register in sets of both files."""
    if register >= SCALARS:
        special = (name for name, place in _SPECIAL.items() if place == (register - SCALARS, 1))
        return next(special, f"s{register - SCALARS}")
    return f"v{register}" if register < ACCUMULATORS else f"a{register - ACCUMULATORS}"


def constant(token: str) -> int:
    """Return the 32 bits of an integer or float constant."""
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", token):
        return int(token, 0) & WORD
    try:
        return int(F32(token).view(U32))
    except ValueError:
        raise EmulationError(f"unknown operand {token}") from None


def row(token: str) -> int:
    """Return the row of the first vector register that a token names."""
    found = registers(token)
    if found is None or not found.vector:
        raise EmulationError(f"{token} is not a vector register")
    return found.first


def lanes(token: str, part: int = 0) -> Callable[["Wave"], Lanes]:
    """Return a getter of an operand's 32 bits for each lane; `part` 1 is the upper half of 64 bits."""
    if token.startswith("-") and registers(token):
        inner = lanes(token[1:], part)
        return lambda wave: inner(wave) ^ U32(0x80000000)
    if token.startswith("|"):
        inner = lanes(token.strip("|"), part)
        return lambda wave: inner(wave) & U32(0x7FFFFFFF)
    found = registers(token)
    if found is None:
        value = U32(constant(token)) if not part else U32(WORD if token.startswith("-") else 0)
        return lambda wave: value  # type: ignore[return-value]
    place = found.first + (part if found.count > 1 else 0)
    if found.vector:
        return lambda wave: wave.vector[place]
    return lambda wave: U32(wave.scalar[place])  # type: ignore[return-value]


def floats(token: str, part: int = 0) -> Callable[["Wave"], Floats]:
    """Return a getter of an operand's float32 for each lane."""
    get = lanes(token, part)
    return lambda wave: get(wave).view(F32)


def scalar(token: str) -> Callable[["Wave"], int]:
    """Return a getter of a scalar operand's 32 bits."""
    found = registers(token)
    if found is None:
        value = constant(token)
        return lambda wave: value
    place = found.first
    if found.vector:
        raise EmulationError(f"{token} is not a scalar register")
    return lambda wave: wave.scalar[place]


def scalar_pair(token: str) -> Callable[["Wave"], int]:
    """Return a getter of a scalar operand's 64 bits."""
    found = registers(token)
    if found is None:
        value = int(token, 0) & DOUBLE_WORD
        return lambda wave: value
    place = found.first
    return lambda wave: wave.scalar[place] | wave.scalar[place + 1] << 32


def put_scalar(token: str) -> Callable[["Wave", int], None]:
    """Return a setter of a scalar register."""
    found = registers(token)
    if found is None or found.vector or found.first >= EXEC:
        raise EmulationError(f"{token} is not a scalar register that can be written alone")
    place = found.first

    def put(wave: "Wave", value: int) -> None:
        wave.scalar[place] = value & WORD

    return put


def put_scalar_pair(token: str) -> Callable[["Wave", int], None]:
    """Return a setter of a pair of scalar registers; one of exec changes the active lanes."""
    found = registers(token)
    if found is None or found.vector or found.count != 2:
        raise EmulationError(f"{token} is not a pair of scalar registers")
    place = found.first

    def put(wave: "Wave", value: int) -> None:
        wave.scalar[place], wave.scalar[place + 1] = value & WORD, value >> 32 & WORD
        if place == EXEC:
            wave.update_exec()

    return put


def put_lanes(place: int) -> Callable[["Wave", Lanes], None]:
    """Return a setter of the active lanes of a vector register."""

    def put(wave: "Wave", value: Lanes) -> None:
        if wave.all_active:
            wave.vector[place] = value
        else:
            np.copyto(wave.vector[place], value, where=wave.active)

    return put


@lru_cache(4096)
def lanes_of(mask: int) -> NDArray[np.bool_]:
    """Return the lanes whose bits are set in a mask of 64 bits."""
    found = np.unpackbits(np.frombuffer(mask.to_bytes(8, "little"), np.uint8), bitorder="little").astype(bool)
    found.flags.writeable = False
    return found


def mask_of(chosen: NDArray[np.bool_]) -> int:
    """Return a mask of 64 bits; the inverse of `lanes_of`."""
    return int.from_bytes(np.packbits(chosen, bitorder="little").tobytes(), "little")
