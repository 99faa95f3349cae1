"""Each rule of `hazards.py`: one wait state too few is refused, enough are accepted."""

import numpy as np
import pytest

from tests.amdgcn.snippets import assert_refused, run

START = """
v_mov_b32_e32 v2, 1.0
v_mov_b32_e32 v3, 1.0
v_mov_b32_e32 v4, 1.0
v_mov_b32_e32 v5, 1.0
s_mov_b32 s4, 0
s_mov_b32 s5, 0
s_nop 7
"""
F32, F32_NEW = "v_mfma_f32_16x16x4f32", "v_mfma_f32_16x16x4_f32"
BF16, BF16_NEW = "v_mfma_f32_16x16x16bf16_1k", "v_mfma_f32_16x16x16_bf16"
READ, OTHER = "v_mov_b32_e32 v6, v10", "v_mov_b32_e32 v10, 0"
RULES = [
    ("gfx90a", f"{F32} v[10:13], v2, v3, 0", READ, 11),
    ("gfx90a", f"{F32} v[10:13], v2, v3, 0", OTHER, 11),
    ("gfx90a", f"{F32} v[10:13], v2, v3, 0", "ds_write_b32 v1, v10", 11),
    ("gfx90a", f"{F32} v[10:13], v2, v3, 0", f"{F32} v[20:23], v10, v3, 0", 11),
    ("gfx90a", f"{F32} v[10:13], v2, v3, 0", f"{F32} v[10:13], v2, v3, v[10:13]", 0),
    ("gfx90a", f"{F32} v[10:13], v2, v3, 0", f"{F32} v[8:11], v2, v3, v[10:13]", 0),
    ("gfx90a", f"{F32} v[8:11], v2, v3, 0\n{F32} v[12:15], v2, v3, 0",
     f"{F32} v[20:23], v2, v3, v[10:13]", 8),
    ("gfx90a", f"{F32} v[10:13], v2, v3, v[2:5]", "v_mov_b32_e32 v5, 0", 7),
    ("gfx90a", f"{BF16} v[10:13], v[2:3], v[4:5], 0", READ, 11),
    ("gfx942", f"{F32_NEW} v[10:13], v2, v3, 0", READ, 10),
    ("gfx942", f"{F32_NEW} v[10:13], v2, v3, v[2:5]", "v_mov_b32_e32 v5, 0", 0),
    ("gfx942", f"{BF16_NEW} v[10:13], v[2:3], v[4:5], 0", READ, 7),
    ("gfx942", f"{BF16_NEW} v[10:13], v[2:3], v[4:5], v[2:5]", "v_mov_b32_e32 v5, 0", 3),
    ("gfx942", f"{BF16_NEW} v[8:11], v[2:3], v[4:5], 0\n{BF16_NEW} v[12:15], v[2:3], v[4:5], 0",
     f"{BF16_NEW} v[20:23], v[2:3], v[4:5], v[10:13]", 5),
    ("gfx90a", "v_mov_b32_e32 v2, 0", f"{F32} v[10:13], v2, v3, 0", 2),
    ("gfx90a", "v_mov_b32_e32 v2, 0", "v_mov_b32_dpp v6, v2 row_shr:1 row_mask:0xf bank_mask:0xf", 2),
    ("gfx90a", "v_readfirstlane_b32 s2, v2\nv_readfirstlane_b32 s3, v2",
     "global_load_dword v6, v1, s[2:3]", 5),
    ("gfx90a", "v_readfirstlane_b32 s4, v1", "v_readlane_b32 s6, v2, s4", 4),
    ("gfx90a", "v_cmp_lt_u32_e32 vcc, v1, v1", "v_div_fmas_f32 v6, v2, v3, v4", 4),
    ("gfx90a", "global_store_dwordx4 v1, v[2:5], s[2:3]", "v_mov_b32_e32 v4, 0", 1),
    ("gfx90a", "global_store_dwordx2 v1, v[2:3], s[2:3]", "v_mov_b32_e32 v3, 0", 0),
    ("gfx942", "global_store_dwordx4 v1, v[2:5], s[2:3]", "v_mov_b32_e32 v4, 0", 2),
    ("gfx942", "v_cmp_lt_u32_e32 vcc, v1, v1", "v_cndmask_b32_e32 v6, v2, v3, vcc", 2),
    ("gfx942", "v_mov_b32_e32 v2, 0", "v_readfirstlane_b32 s6, v2", 1),
    ("gfx942", "v_exp_f32_e32 v2, v3", "v_add_f32_e32 v6, v2, v3", 1),
    ("gfx942", "v_exp_f32_e32 v2, v3", "v_exp_f32_e32 v6, v2", 0),
    ("gfx90a", "v_exp_f32_e32 v2, v3", "v_add_f32_e32 v6, v2, v3", 0),
]  # fmt: skip
"""Architecture, first instruction, second instruction and the wait states between them."""


@pytest.mark.parametrize(("architecture", "first", "then", "states"), RULES)
def test_instructions_need_their_wait_states(architecture: str, first: str, then: str, states: int) -> None:
    def between(count: int) -> str:
        nops = "".join(f"s_nop {min(count - done, 8) - 1}\n" for done in range(0, count, 8))
        return f"{START}{first}\n{nops}{then}\ns_nop 7\ns_nop 7\ns_nop 7\n"

    if "readfirstlane_b32 s2" not in first:  # it writes no address, which is refused, too
        run(between(states), architecture=architecture, tensor=np.zeros(1024, np.uint32))
    if states:
        assert_refused(
            between(states - 1), "1 more wait states are needed (s_nop)", architecture=architecture
        )


def test_other_instructions_count_as_wait_states() -> None:
    filled = "s_mov_b32 s6, 0\n" * 10 + "s_nop 0\n"
    run(f"{START}{F32} v[10:13], v2, v3, 0\n{filled}{READ}")
    assert_refused(f"{START}{F32} v[10:13], v2, v3, 0\n{filled[:-8]}{READ}", "1 more wait states")
