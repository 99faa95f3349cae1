"""Table of compiled kernels: one row per kernel, dtype and architecture."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from aqtopo_kernels.aot import machine_code, mca
from aqtopo_kernels.aot.stand_in import Compilation, standing_in
from aqtopo_kernels.elevation_attention import launch as attention
from aqtopo_kernels.wind_gather import launch as wind_gather

Row = dict[str, Any]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

KERNEL_NAMES = {
    "forward_kernel": "forward",
    "query_gradient_kernel": "dq",
    "key_value_gradient_kernel": "dkdv",
    "delta_kernel": "delta",
    "move_rows_kernel": "wind_gather",
}
"""Names in the table by the names of the `triton.jit` functions."""

_PRODUCTS = {"forward": 2, "dq": 3, "dkdv": 4}
"""Number of matrix products in the inner loop of each kernel, each of 2 BLOCK_M BLOCK_N D FLOP."""

_SHARED_A_MULTIPROCESSOR = {"sm_80": 167936, "sm_90": 233472}


def survey(
    archs: Iterable[str],
    dtypes: Iterable[str],
    *,
    head_dim: int,
    heads: int,
    tokens: int,
    all_variants: bool = False,
    only: str | None = None,
) -> Iterable[tuple[Row, Compilation]]:
    """Compile the kernels that a model launches, and yield the rows that the command prints as JSON.

    With `only`, all kernels are compiled but only the code of the named one is analysed.
    """
    for arch in archs:
        for dtype in dtypes:
            with standing_in(arch) as compilations:
                launch_all(
                    DTYPES[dtype], head_dim=head_dim, heads=heads, tokens=tokens, all_variants=all_variants
                )
            for compilation in compilations:
                name = _name(compilation)
                products = _PRODUCTS.get(KERNEL_NAMES[compilation.function])
                if only in (None, name):
                    yield row_of(compilation, arch, dtype, head_dim, name, products), compilation


def launch_all(
    dtype: torch.dtype, *, head_dim: int, heads: int, tokens: int, batch: int = 1, all_variants: bool = True
) -> None:
    """Launch every kernel of a model on meta tensors.

    By default block 0 uses the kernels with bias and order, and the other blocks those with neither.
    `all_variants` adds the kernels with a bias and no order and with an order and no bias.
    """
    qkv = torch.empty((batch, tokens, 3 * heads * head_dim), dtype=dtype, device="meta")
    q, k, v = (x.view(batch, tokens, heads, head_dim).transpose(1, 2) for x in qkv.chunk(3, -1))
    elevation = torch.empty((batch, tokens), device="meta")
    alpha = torch.empty(1, device="meta")
    order = torch.empty((batch, tokens), dtype=torch.int32, device="meta")
    for some_order in (order, None):
        for height, strength in ((elevation, alpha), (None, None)):
            if not all_variants and (some_order is None) != (height is None):
                continue
            out, lse = attention.forward(q, k, v, height, strength, some_order, 1.0)
            dout = torch.empty_like(out)
            attention.backward(dout, q, k, v, out, lse, height, strength, some_order, 1.0)
    _launch_gathers(qkv[..., : heads * head_dim].contiguous(), order)


def _launch_gathers(tokens: Tensor, order: Tensor) -> None:
    wind_gather.gather(tokens, order, None)
    wind_gather.gather(tokens, order, tokens)
    wind_gather.gather(tokens, order, tokens.float())
    wind_gather.scatter(tokens, order)


def _name(compilation: Compilation) -> str:
    """Return the kernel's name, with `_plain` if it has no bias."""
    plain = compilation.constants.get("BIAS") is False
    return KERNEL_NAMES[compilation.function] + ("_plain" if plain else "")


def row_of(
    compilation: Compilation, arch: str, dtype: str, head_dim: int, kernel: str, products: int | None
) -> Row:
    """Return a compilation's row.

    `products` is the number of matrix products of 2 BLOCK_M BLOCK_N D FLOP per iteration of the inner loop,
    for `useful` and `eff1`; None for a kernel without matrix products.
    """
    code = _read(compilation, arch)
    metadata, constants = compilation.metadata, compilation.constants
    flop = None
    if products:
        block = constants["BLOCK_M"] * constants["BLOCK_N"]
        flop = 2.0 * products * block * head_dim / metadata["num_warps"]
    amd = arch.startswith("gfx")
    issued = sum(_matrix_flop(instruction) for instruction in code.loop) if amd else 0
    return {
        "kernel": kernel,
        "dtype": dtype,
        "arch": arch,
        "config": _config(compilation),
        "vgprs": code.vgprs,
        "agprs": code.agprs,
        "vgpr_spills": code.vgpr_spills,
        "sgpr_spills": code.sgpr_spills,
        "head_dim": head_dim,
        "lds_bytes": metadata["shared"],
        "occupancy": code.occupancy,
        "matrix_instructions": code.matrix_instructions,
        "instructions_per_iteration": len(code.loop) or None,
        "useful": round(flop / issued, 4) if flop and issued else None,
        "eff1": _rounded(mca.eff1(code.loop, arch, dtype, flop)) if flop and amd else None,
    }


def _read(compilation: Compilation, arch: str) -> machine_code.MachineCode:
    shared, warps = compilation.metadata["shared"], compilation.metadata["num_warps"]
    if arch.startswith("gfx"):
        return machine_code.read_amd(compilation.texts["amdgcn"].read_text(encoding="utf-8"), shared, warps)
    limit = _SHARED_A_MULTIPROCESSOR[arch]
    return machine_code.read_nvidia(compilation.texts["cubin"], shared, limit, warps)


def _config(compilation: Compilation) -> dict[str, Any]:
    """Return the constants and options that distinguish this compilation from others of the kernel."""
    constants = {name.lower(): value for name, value in compilation.constants.items() if value is not None}
    named = ("num_warps", "num_stages", "matrix_instr_nonkdim", "schedule_hint")
    return constants | {name: compilation.metadata[name] for name in named if name in compilation.metadata}


def _matrix_flop(instruction: str) -> int:
    """Return the FLOP of an AMD matrix instruction, from M x N x K in its name; 0 for others."""
    shape = re.match(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)", instruction)
    return 2 * math.prod(map(int, shape.groups())) if shape else 0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
