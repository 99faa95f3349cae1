"""Analysis of compiled kernels: registers, spills, the inner loop and its matrix instructions.

AMD's assembly contains the register counts; NVIDIA's are read from the cubin with the tools in Triton.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import triton

_AMD_MATRIX = re.compile(r"v_mfma_\w+")
_NVIDIA_MATRIX = re.compile(r"[HIB]G?MMA\.\S+|[HIBQ]MMA\S*|DMMA\S*")
_NVIDIA_ARITHMETIC = re.compile(r"FFMA\S*")
_LDS_BYTES = 65536


@dataclass(frozen=True)
class MachineCode:
    """Resources of a kernel, and the instructions of its inner loop.

    Attributes:
        vgprs: vector registers per lane (AGPRs included), or registers per thread on NVIDIA.
        agprs: those of them that only matrix instructions can use.
        vgpr_spills: vector registers written to memory; on NVIDIA, stores of spilled registers.
        sgpr_spills: scalar registers spilled.
        occupancy: wavefronts per busy SIMD (warps per scheduler), limited by registers and LDS.
        matrix_instructions: opcodes and counts in the whole kernel.
        loop: the inner loop, one instruction per line, without labels, directives, branches and barriers.
    """

    vgprs: int
    agprs: int
    vgpr_spills: int
    sgpr_spills: int
    occupancy: int
    matrix_instructions: dict[str, int]
    loop: list[str]


def read_amd(assembly: str, lds_bytes: int, warps: int) -> MachineCode:
    """Analyse an `amdgcn` file; the LDS size at launch also limits the occupancy."""

    def number(pattern: str) -> int:
        match = re.search(pattern, assembly)
        assert match, f"no {pattern} in the assembly: the compiler's format has changed"
        return int(match[1])

    # A program of two warps leaves SIMDs idle; each busy SIMD has one wavefront.
    by_lds = max(_LDS_BYTES // max(lds_bytes, 1) * warps // 4, 1)
    return MachineCode(
        vgprs=number(r"\.vgpr_count:\s+(\d+)"),
        agprs=number(r"\.agpr_count:\s+(\d+)"),
        vgpr_spills=number(r"\.vgpr_spill_count:\s+(\d+)"),
        sgpr_spills=number(r"\.sgpr_spill_count:\s+(\d+)"),
        occupancy=min(number(r"; Occupancy: (\d+)"), by_lds),
        matrix_instructions=_count(_AMD_MATRIX.findall(assembly)),
        loop=_loop(assembly.splitlines(), r"^(\.?\w+):", r"s_c?branch\w*\s+(\.\w+)", _amd_weight),
    )


def read_nvidia(cubin: Path, shared_bytes: int, shared_limit: int, warps: int) -> MachineCode:
    """Analyse a cubin with cuobjdump and nvdisasm; programs of a multiprocessor share shared_limit bytes."""
    usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, "no registers in the output of cuobjdump: its format has changed"
    text = _tool("nvdisasm", "--print-code", str(cubin))
    instructions = [re.sub(r"^\s*(/\*\w+\*/)?\s*", "", line) for line in text.splitlines()]
    # Registers are allocated in units of 256 per warp.
    per_warp = -(-int(registers[1]) * 32 // 256) * 256
    by_registers = 65536 // per_warp // warps
    by_shared = shared_limit // max(shared_bytes, 1)
    return MachineCode(
        vgprs=int(registers[1]),
        agprs=0,
        vgpr_spills=sum(bool(re.match(r"(@!?\w+ )?STL", line)) for line in instructions),
        sgpr_spills=0,
        occupancy=min(by_registers, by_shared, 64 // warps) * warps // 4,
        matrix_instructions=_count(_NVIDIA_MATRIX.findall(text) or _NVIDIA_ARITHMETIC.findall(text)),
        loop=_loop(instructions, r"^(\.\w+):", r"BRA.*`\((\.\w+)\)", _nvidia_weight),
    )


def is_transcendental(instruction: str) -> bool:
    """Return True for AMD instructions at a quarter of the rate, which llvm-mca counts at full rate."""
    return instruction.startswith(("v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_"))


def _amd_weight(instruction: str) -> bool:
    return bool(_AMD_MATRIX.match(instruction))


def _nvidia_weight(instruction: str) -> bool:
    return bool(re.match(r"(@!?\w+ )?([HIB]G?MMA|FFMA)", instruction))


def _loop(lines: list[str], label: str, branch: str, weight: Callable[[str], bool]) -> list[str]:
    """Return the instructions of the loop (label to backward branch) with the most arithmetic."""
    starts: dict[str, int] = {}
    best: list[str] = []
    heaviest = 0
    for i, line in enumerate(lines):
        if found := re.match(label, line.strip()):
            starts[found[1]] = i
        jump = re.search(branch, line)
        if jump and jump[1] in starts:
            body = list(_instructions(lines[starts[jump[1]] : i]))
            arithmetic = sum(map(weight, body))
            if arithmetic > heaviest:
                best, heaviest = body, arithmetic
    return best


def _instructions(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        text = line.split("//")[0].split(";")[0].strip()
        skipped = not text or text.endswith(":") or text.startswith((".", "/*"))
        if not skipped and not re.match(r"s_c?branch|s_barrier|BRA|BAR", text):
            yield text


def _count(opcodes: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(opcodes).items()))


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout
