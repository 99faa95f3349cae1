"""Kernels of a few lines, for tests of the emulator."""

import re
from textwrap import dedent

import numpy as np
import pytest

from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.memory import Memory
from tests.amdgcn.program import assemble
from tests.amdgcn.workgroup import launch

_TEXT = """
kernel:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
\ts_waitcnt lgkmcnt(0)
\tv_lshlrev_b32_e32 v1, 2, v0
{code}
\ts_endpgm
.amdhsa_kernel kernel
    .amdhsa_private_segment_fixed_size 0
    .amdhsa_user_sgpr_count 2
    .amdhsa_system_sgpr_workgroup_id_x 1
"""


def run(
    code: str, *, warps: int = 1, architecture: str = "gfx90a", tensor: np.ndarray | None = None
) -> np.ndarray:
    """Execute code on a tensor of 32-bit words, by default 0 to 255; return it.

    Its address is in s[2:3], four times the thread's number in v1. The code starts at line 6.
    """
    tensor = np.arange(256, dtype=np.uint32) if tensor is None else tensor
    memory = Memory()
    memory.allow(tensor.ctypes.data, tensor.nbytes)
    lines = (line.strip() for line in dedent(code).strip().splitlines())
    text = "\n".join(line if line.endswith(":") else f"\t{line}" for line in lines)
    kernarg = int(tensor.ctypes.data).to_bytes(8, "little")
    launch(
        assemble(_TEXT.format(code=text), architecture), (1, 1, 1), kernarg, memory, 1024, warps, limit=1000
    )
    return tensor


def assert_refused(code: str, message: str, *, warps: int = 1, architecture: str = "gfx90a") -> None:
    """Check that the emulator refuses the code with a message."""
    with pytest.raises(EmulationError, match=re.escape(message)):
        run(code, warps=warps, architecture=architecture)
