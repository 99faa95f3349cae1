"""Instructions against their definitions."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.amdgcn.numerics import exp2, fma, reciprocal, to_half
from tests.amdgcn.snippets import assert_refused, run

LANES = np.arange(64)
STORE = "s_nop 7\ns_nop 7\ns_nop 7\nglobal_store_dword v1, v2, s[2:3]"
F32 = np.float32


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("v_mad_u64_u32 v[2:3], s[4:5], v0, v0, 5", lambda n: n * n + 5),
        ("v_perm_b32 v2, v0, v1, 0x0c040100", lambda n: (n & 255) << 16 | 4 * n),
        ("v_bfe_u32 v2, v0, 1, 3", lambda n: n >> 1 & 7),
        ("v_bfe_i32 v2, v0, 0, 3", lambda n: (n & 7) - 8 * (n >> 2 & 1)),
        ("v_mul_i32_i24_e32 v2, -3, v0", lambda n: -3 * n),
        ("v_lshl_add_u32 v2, v0, 3, v0", lambda n: 9 * n),
        ("v_med3_f32 v2, v0, v0, v0", lambda n: n),
        ("v_cmp_lt_u32_e32 vcc, 31, v0\nv_cndmask_b32_e32 v2, v0, v1, vcc",
         lambda n: np.where(n > 31, 4 * n, n)),
        ("v_mov_b32_e32 v2, 99\ns_nop 1\nv_mov_b32_dpp v2, v0 row_shr:1 row_mask:0xf bank_mask:0xf",
         lambda n: np.where(n % 16 == 0, 99, n - 1)),
        ("s_nop 1\nv_mov_b32_dpp v2, v0 quad_perm:[3,2,1,0] row_mask:0xf bank_mask:0xf", lambda n: n ^ 3),
        ("v_mov_b32_e32 v2, 99\ns_nop 1\nv_mov_b32_dpp v2, v0 row_bcast:15 row_mask:0xa bank_mask:0xf",
         lambda n: np.where(n // 16 % 2, n // 16 * 16 - 1, 99)),
        ("v_add_u32_sdwa v2, v1, v0 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_0 src1_sel:WORD_0",
         lambda n: 5 * n),
        ("v_readlane_b32 s4, v0, 7\nv_mov_b32_e32 v2, s4", lambda n: 7 + 0 * n),
        ("ds_swizzle_b32 v2, v0 offset:swizzle(SWAP,16)\ns_waitcnt lgkmcnt(0)", lambda n: n ^ 16),
        ("v_xor_b32_e32 v3, 4, v1\nds_bpermute_b32 v2, v3, v0\ns_waitcnt lgkmcnt(0)", lambda n: n ^ 1),
        ("v_mov_b32_e32 v2, 99\nv_cmp_gt_u32_e32 vcc, 8, v0\ns_and_saveexec_b64 s[4:5], vcc\n"
         "v_mov_b32_e32 v2, v0\ns_mov_b64 exec, s[4:5]", lambda n: np.where(n < 8, n, 99)),
        ("s_mov_b32 s4, 0\n.LTOP:\ns_add_i32 s4, s4, 3\ns_cmp_lt_i32 s4, 10\ns_cbranch_scc1 .LTOP\n"
         "v_mov_b32_e32 v2, s4", lambda n: 12 + 0 * n),
        ("v_accvgpr_write_b32 a3, v0\nv_accvgpr_read_b32 v2, a3", lambda n: n),
    ],
)  # fmt: skip
def test_integers_and_lanes(code: str, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    assert np.array_equal(run(f"{code}\n{STORE}")[:64].view(np.int32), expected(LANES).astype(np.int32))


def test_the_upper_half_of_a_sum_is_unknown_if_its_addend_is() -> None:
    code = "v_mov_b32_e32 v4, 0\nv_mad_u64_u32 v[2:3], s[4:5], v0, v0, v[4:5]\n"
    run(f"{code}{STORE}")
    assert_refused(f"{code}v_mov_b32_e32 v6, v3", "v3 was never written")


def test_fma_rounds_once() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 500)).astype(F32)
    c = (-a.astype(np.float64) * b * (1 + generator.choice([0, 2.0**-24, 2.0**-20], 500))).astype(F32)
    for x, y, z, result in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        distance = abs(Fraction(float(result)) - exact)
        neighbours = (np.nextafter(result, F32(np.inf)), np.nextafter(result, F32(-np.inf)))
        assert all(distance <= abs(Fraction(float(other)) - exact) for other in neighbours)


def test_transcendentals_flush_denormals() -> None:
    assert exp2(np.array([-127.0, -126.0, 3.0], F32)).tolist() == [0.0, 2.0**-126, 8.0]
    assert reciprocal(np.array([2.0**127, 4.0], F32)).tolist() == [0.0, 0.25]
    assert to_half(np.array([1.0], F32)).tolist() == [0x3C00]


LAYOUTS = [
    ("gfx90a", "v_mfma_f32_32x32x2f32", 32, 2, np.float32),
    ("gfx90a", "v_mfma_f32_16x16x4f32", 16, 4, np.float32),
    ("gfx90a", "v_mfma_f32_32x32x8f16", 32, 8, np.float16),
    ("gfx90a", "v_mfma_f32_16x16x16bf16_1k", 16, 16, None),
    ("gfx942", "v_mfma_f32_16x16x16_f16", 16, 16, np.float16),
    ("gfx942", "v_mfma_f32_32x32x8_bf16", 32, 8, None),
]


def to_bits(value: np.float32, kind: type | None) -> int:
    """Return the bits of a value in float32, float16, or bfloat16 (None)."""
    if kind is None:
        return int(value.view(np.uint32)) >> 16
    return int(kind(value).view(np.uint32 if kind is F32 else np.uint16))


@pytest.mark.parametrize(("architecture", "name", "m", "k", "kind"), LAYOUTS)
def test_matrix_instructions_follow_the_layouts_of_the_manual(
    architecture: str, name: str, m: int, k: int, kind: type | None
) -> None:
    a, b = np.random.default_rng(0).integers(-4, 5, (2, m, k)).astype(F32)
    each, registers = k * m // 64, m * m // 64  # elements of A and B, results of a lane
    words = np.zeros((4 + registers, 64), np.uint32)
    for n, matrix in enumerate((a, b)):
        for i in range(m):
            for j in range(k):
                bits = to_bits(matrix[i, j], kind) << 16 * (j % each % 2)
                words[2 * n + j % each // 2, i + m * (j // each)] |= np.uint32(bits)
    loads = "".join(f"global_load_dword v{4 + n}, v1, s[2:3] offset:{256 * n}\n" for n in range(4))
    operands = "v4, v6" if each == 1 else "v[4:5], v[6:7]"
    code = f"{loads}s_waitcnt vmcnt(0)\n{name} v[8:{7 + registers}], {operands}, 0\n" + "s_nop 7\n" * 3
    for r in range(registers):
        code += f"v_add_u32_e32 v2, {256 * (4 + r)}, v1\nglobal_store_dword v2, v{8 + r}, s[2:3]\n"
    results = run(code, architecture=architecture, tensor=words.reshape(-1))[4 * 64 :].view(F32)
    row = [[8 * (r // 4) + 4 * (lane // m) + r % 4 for lane in LANES] for r in range(registers)]
    column = [[lane % m for lane in LANES] for _ in range(registers)]
    assert np.array_equal(results.reshape(registers, 64), (a @ b.T)[row, column])
