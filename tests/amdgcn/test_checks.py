"""Each check of the emulator refuses a kernel of a few lines, and accepts it without the fault."""

import numpy as np
import pytest

from tests.amdgcn.snippets import assert_refused, run


def test_a_kernel_runs() -> None:
    words = run("global_load_dword v2, v1, s[2:3]\ns_waitcnt vmcnt(0)\nv_add_u32_e32 v2, 7, v2\n"
                "global_store_dword v1, v2, s[2:3]")  # fmt: skip
    assert np.array_equal(words[:64], np.arange(64) + 7)
    assert np.array_equal(words[64:], np.arange(64, 256))


def test_an_unknown_instruction_is_named_with_its_line() -> None:
    assert_refused(
        "v_frobnicate_b32 v1, v2", "line 6: v_frobnicate_b32 v1, v2: unknown instruction v_frobnicate_b32"
    )
    assert_refused("v_add_u32_e32 v1, v0, v0 row_half_mirror", "unknown")
    assert_refused("ds_add_u32 v1, v0", "unknown instruction ds_add_u32")


def test_a_register_must_have_been_written() -> None:
    assert_refused("v_mov_b32_e32 v2, v3", "line 6: v_mov_b32_e32 v2, v3: v3 was never written")
    assert_refused("s_mov_b32 s4, s5", "s5 was never written")
    assert_refused(".LTOP:\ns_cbranch_vccnz .LTOP", "vcc_lo was never written")


@pytest.mark.parametrize(
    "use", ["v_mov_b32_e32 v3, v2", "v_mov_b32_e32 v2, 0", "global_store_dword v1, v2, s[2:3]"]
)
def test_a_load_must_be_waited_for(use: str) -> None:
    assert_refused(f"global_load_dword v2, v1, s[2:3]\n{use}", "v2 has a load in flight")
    run(f"global_load_dword v2, v1, s[2:3]\ns_waitcnt vmcnt(0)\n{use}")


def test_loads_arrive_in_order_but_scalar_loads_do_not() -> None:
    two = "global_load_dword v2, v1, s[2:3]\nglobal_load_dword v3, v1, s[2:3]\ns_waitcnt vmcnt(1)\n"
    run(two + "v_mov_b32_e32 v4, v2")
    assert_refused(two + "v_mov_b32_e32 v4, v3", "v3 has a load in flight")
    scalars = "s_load_dword s4, s[2:3], 0x0\ns_load_dword s5, s[2:3], 0x4\ns_waitcnt lgkmcnt(1)\n"
    assert_refused(scalars + "s_mov_b32 s6, s4", "s4 has a load in flight")


def test_addresses_lie_in_a_tensor_and_are_aligned() -> None:
    assert_refused("global_load_dword v2, v1, s[2:3] offset:772", "outside every tensor")
    assert_refused("v_or_b32_e32 v1, 2, v1\nglobal_load_dword v2, v1, s[2:3]", "not a multiple of 4 bytes")
    assert_refused("v_mov_b32_e32 v2, 0\nglobal_store_dword v1, v2, s[2:3] offset:-4", "outside every tensor")


def test_lds_is_written_before_it_is_read_and_has_bounds() -> None:
    assert_refused("ds_read_b32 v2, v1", "nothing was written to this LDS address")
    assert_refused("ds_write_b32 v1, v0 offset:800", "is beyond 1024 bytes")
    assert_refused("v_or_b32_e32 v1, 1, v1\nds_write_b32 v1, v0", "not a multiple of 4 bytes")


EXCHANGE = """
ds_write_b32 v1, v0
s_waitcnt lgkmcnt(0)
s_barrier
v_xor_b32_e32 v2, 0x100, v1
ds_read_b32 v3, v2
s_waitcnt lgkmcnt(0)
global_store_dword v1, v3, s[2:3]
"""


def test_waves_exchange_values_between_barriers() -> None:
    words = run(EXCHANGE, warps=2)
    assert np.array_equal(words[:128], np.arange(128) ^ 64)
    assert_refused(EXCHANGE.replace("s_barrier\n", ""), "nothing was written to this LDS address", warps=2)
    unfinished = EXCHANGE.replace("s_waitcnt lgkmcnt(0)\ns_barrier", "s_barrier")
    assert_refused(unfinished, "another wave has written this since the last barrier", warps=2)
    assert_refused(EXCHANGE + "ds_write_b32 v1, v1", "LDS race", warps=2)
    run(EXCHANGE + "s_barrier\nds_write_b32 v1, v1", warps=2)


def test_all_waves_reach_a_barrier() -> None:
    code = """
    v_readfirstlane_b32 s4, v0
    s_cmp_eq_u32 s4, 0
    s_cbranch_scc1 .LEND
    s_barrier
    .LEND:
    """
    assert_refused(code, "waves [1] wait at a barrier that others never reach", warps=2)


def test_execution_stays_in_the_kernel_and_ends() -> None:
    assert_refused(
        "s_branch .LEND\ns_endpgm\n.LTOP:\ns_branch .LTOP\n.LEND:\ns_branch .LTOP", "the loop does not end"
    )
    assert_refused("s_branch .LNOWHERE", "line 6: s_branch .LNOWHERE: unknown")
