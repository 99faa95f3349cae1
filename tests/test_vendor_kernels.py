"""Test of the comparison with the vendor's kernels, on small functions of the same names."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install -e .[triton]")
from triton import knobs
from triton.runtime.errors import OutOfResources

from benchmarks.vendor_kernels import (
    PACKAGE,
    best_rows,
    clocks_per_product,
    compile_launch,
    load,
    main,
    table_row,
    vendor_rows,
)

KERNEL = """
import triton
import triton.language as tl

@triton.jit
def NAME(Q, K, O, N, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, D)
    q = tl.load(Q + rows[:, None] * D + columns[None, :])
    acc = tl.zeros([BLOCK_M, D], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        k = tl.load(K + (start + tl.arange(0, BLOCK_N))[:, None] * D + columns[None, :])
        acc += tl.dot(tl.dot(q, tl.trans(k)).to(k.dtype), k)
    tl.store(O + rows[:, None] * D + columns[None, :], acc)
"""
FORWARD = """
autotune_configs = [triton.Config({"BLOCK_M": 128, "BLOCK_N": 32}, num_warps=4)]

def get_cdna_autotune_configs():
    return [triton.Config({"BLOCK_M": 128, "BLOCK_N": 64}, num_warps=4)], ["N"]

attn_fwd = triton.autotune(configs=autotune_configs, key=["N"])(attn_fwd)

def attention_prefill_forward_triton_impl(q, k, v, o, sm_scale, bias, max_seqlens_q):
    assert bias is None
    attn_fwd[(1,)](q, k, o, max_seqlens_q, D=q.shape[-1])
"""
BACKWARD = """
def attention_prefill_backward_triton_split_impl(do, q, k, v, o, softmax_lse, dq, dk, dv, max_seqlen_q):
    for kernel in (_bwd_kernel_dkdv_noncausal, _bwd_kernel_dq_noncausal):
        kernel[(1,)](q, k, dq, max_seqlen_q, D=q.shape[-1], BLOCK_M=128, BLOCK_N=32)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "flash_attn" / PACKAGE
    folder.mkdir(parents=True)
    (tmp_path / "flash_attn" / "__init__.py").write_text(
        '__version__ = "2.8"\nraise ImportError("no CUDA")\n', encoding="utf-8"
    )
    (folder / "__init__.py").touch()
    (folder / "fwd_prefill.py").write_text(KERNEL.replace("NAME", "attn_fwd") + FORWARD, encoding="utf-8")
    names = ("_bwd_kernel_dkdv_noncausal", "_bwd_kernel_dq_noncausal")
    kernels = "".join(KERNEL.replace("NAME", name) for name in names)
    (folder / "bwd_prefill_split.py").write_text(kernels + BACKWARD, encoding="utf-8")
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    for name in ("", ".fwd_prefill", ".bwd_prefill_split"):
        monkeypatch.delitem(sys.modules, PACKAGE + name, raising=False)
    return tmp_path


@pytest.mark.slow
def test_the_vendor_s_kernels_are_compiled_in_each_configuration(source: Path) -> None:
    forward, backward, version = load(source)
    rows = list(vendor_rows(forward, backward, "gfx90a", "bf16", 64))
    found = [(row["kernel"], row["config"]["block_m"], row["config"]["block_n"]) for row in rows]
    assert found == [("dkdv", 128, 32), ("dq", 128, 32), ("forward", 128, 32), ("forward", 128, 64)]
    for row in rows:
        assert row["head_dim"] == 64
        assert all(name.endswith("bf16_1k") for name in row["matrix_instructions"])
    # Each of these loops has two products. A forward pass needs two, dkdv four and dq three.
    useful = {row["kernel"]: row["useful"] for row in rows}
    assert useful == {"dkdv": 2.0, "dq": 1.5, "forward": 1.0}
    assert version == "2.8"
    assert table_row(rows[0], "theirs")["M, N, warps"] == "128, 32, 4"


def test_a_launch_that_needs_too_much_lds_is_left_out_with_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def launch() -> None:
        raise OutOfResources(70000, 65536, "shared memory")

    assert compile_launch(launch, "gfx90a") == []
    assert "left out on gfx90a: out of resource: shared memory" in capsys.readouterr().err


def test_the_best_row_has_no_spills_and_the_highest_eff1() -> None:
    def row(kernel: str, spills: int, eff1: float | None) -> dict[str, Any]:
        return {"kernel": kernel, "vgpr_spills": spills, "eff1": eff1}

    slow, fast, hung, spilling = row("dq", 0, 0.2), row("dq", 0, 0.3), row("dq", 0, None), row("dq", 1, 0.9)
    only = row("forward", 7, 0.1)
    assert best_rows([slow, only, fast, spilling, hung]) == {"dq": fast, "forward": only}


def test_clocks_are_weighted_by_the_products_of_a_kernel() -> None:
    rows = {name: {"eff1": eff1} for name, eff1 in (("forward", 0.5), ("dkdv", 1.0), ("dq", 0.25))}
    assert clocks_per_product(rows) == pytest.approx((2 / 0.5 + 4 / 1.0 + 3 / 0.25) / 9)


def test_a_folder_without_the_vendor_s_kernels_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="is not a source tree of flash-attn"):
        load(tmp_path)
    monkeypatch.setattr("benchmarks.vendor_kernels.find_llvm_mca", lambda: Path("llvm-mca"))
    monkeypatch.setattr(sys, "argv", ["vendor_kernels", "--source", str(tmp_path / "nowhere"), "--quick"])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert not told.out
