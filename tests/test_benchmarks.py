import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from aqtopo_kernels import elevation_attention as fused
from aqtopo_kernels.aot.mca import NO_LLVM_MCA, find_llvm_mca
from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference
from benchmarks import ddp, elevation_attention, train_step
from benchmarks.elevation_attention import checked_flex, flex, make_inputs
from benchmarks.measure import MIB, Timings, peak_bytes, time_paired, version_of
from benchmarks.peaks import arithmetic_columns, memory_columns
from benchmarks.table import NAMES, README, section
from tests.kernels.launchers import Launcher

CACHE = Path(__file__).parents[1] / ".cache" / "triton"


def test_a_ratio_is_that_of_paired_rounds_and_not_of_medians() -> None:
    timings = Timings({"one": [1.0, 20.0, 3.0], "other": [2.0, 10.0, 6.0]})
    assert timings.ratio("one", "other") == 0.5
    assert timings.median("one") == 3.0


def test_contenders_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    timings = time_paired({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]


def test_peak_memory_excludes_earlier_memory_and_results() -> None:
    def work() -> torch.Tensor:
        return torch.stack([torch.ones(30 * MIB // 4), torch.ones(30 * MIB // 4)]).sum(0)

    assert 55 * MIB <= peak_bytes(work) <= 140 * MIB


def test_a_module_s_version_is_that_of_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "triton_for_rocm-3.7.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: triton-for-rocm\nVersion: 3.7.1\n", encoding="utf-8"
    )
    (about / "top_level.txt").write_text("triton_like\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert version_of("triton_like") == "3.7.1"


def test_a_section_has_a_table_for_each_set_of_columns() -> None:
    rows = [{"N": 1, "s": 0.12345}, {"N": 2, "s": 2.0}, {"of": 3.0, "all": "x"}]
    text = section({"benchmark": "b", "machine": {"threads": 2}, "rows": rows})
    assert "| N | s |\n| --- | --- |\n| 1 | 0.123 |\n| 2 | 2 |" in text
    assert "| of | 3 |\n| all | x |" in text


def test_every_benchmark_has_a_section_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for name in (*NAMES, "vendor_kernels"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end of {name} -->") == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gets_one_strength_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # compilation takes a minute
    q, k, v, elevation, alpha, _ = make_inputs(64)
    found = flex()(q, k, v, elevation, alpha[:1])
    expected = elevation_attention_reference(q, k, v, elevation, alpha)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_without_backward_is_left_out_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert checked_flex(torch.float32) == {}  # it has no backward pass on a CPU
    assert "does not run in torch.float32: FlexAttention does not support backward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI300X OAM", 1307.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
    ],
)
def test_arithmetic_is_a_share_of_the_device_s_peak(gpu: str, peak: float) -> None:
    expected = {"dtype": "bf16", "tflop_s": peak / 2, "of_peak": pytest.approx(0.5)}
    assert arithmetic_columns(gpu, torch.bfloat16, peak * 1e12 / 2) == expected


def test_a_device_without_a_known_peak_is_named_and_a_cpu_has_no_columns() -> None:
    assert "no peak of NVIDIA L4" in str(arithmetic_columns("NVIDIA L4", torch.float32, 1e12)["of_peak"])
    assert memory_columns("NVIDIA H200", 2.4e12) == {"of_peak": pytest.approx(0.5)}
    assert arithmetic_columns(None, torch.float32, 1e12) == memory_columns(None, 1e12) == {}


def test_on_gpus_both_benchmarks_also_compute_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (elevation_attention, train_step):
        monkeypatch.setattr(module, "gpu_name", lambda: "AMD Instinct MI250X")
    contenders = {"fused": fused, "plain": elevation_attention.plain}
    row = elevation_attention.time_attention(64, 1, contenders, torch.bfloat16, 64)
    small = {"dim": 32, "heads": 2, "depth": 2, "regions": [4, 4]}
    (step,) = train_step.measure_step((16, 32), 1, torch.bfloat16, 64, **small)
    for found in (row, step):
        assert found["dtype"] == "bf16"
        assert 0 < found["of_peak"] < 1
        assert found["of_bf16_gemm"] > 0


@pytest.mark.parametrize(("gpus", "enough"), [(1, False), (2, True)])
def test_two_processes_never_share_a_gpu(
    gpus: int, enough: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ddp, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert ddp.enough_gpus() is enough
    assert ("2 processes need one GPU each; available: 1" in capsys.readouterr().err) is not enough


def test_programs_with_other_losses_or_that_do_not_learn_have_no_figures() -> None:
    ddp.check_losses({"ddp": [2.0, 1.0], "engine": [2.0, 1.00001]}, 1e-4)
    with pytest.raises(AssertionError, match=r"losses of engine and ddp differ by 0\.1:"):
        ddp.check_losses({"ddp": [2.0, 1.0], "engine": [2.0, 1.1]}, 1e-4)
    with pytest.raises(AssertionError, match="ddp does not learn"):
        ddp.check_losses({"ddp": [1.0, 1.0], "engine": [1.0, 1.0]}, 1e-4)


def test_rank_processes_end_with_their_parent() -> None:
    others = multiprocessing.active_children()
    program = ddp.Program("ddp", (16, 32), ddp.SMALL, ddp.RANKS, "fp32")
    children = [child for child in multiprocessing.active_children() if child not in others]
    try:
        # At its end Python joins processes that are not daemons, and these wait for a message forever.
        assert [child.daemon for child in children] == [True] * ddp.RANKS
    finally:
        for child in children:
            child.terminate()
            child.join()
    with pytest.raises(multiprocessing.ProcessExitedException):
        program.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_runs_and_prints_only_json(name: str) -> None:
    if name == "compiled_kernels" and find_llvm_mca() is None:
        pytest.skip(NO_LLVM_MCA)
    threads = "2" if name == "spinning" else "1"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", "--threads", threads]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "TRITON_CACHE_DIR": str(CACHE)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["benchmark"] == name
    assert result["rows"]


def test_spin_counts_of_one_thread_are_not_compared() -> None:
    command = [sys.executable, "-m", "benchmarks.spinning", "--quick", "--threads", "1"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "set --threads 2 or more" in run.stderr


@pytest.mark.slow
def test_executed_matrix_instructions_do_the_useful_work_alone() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install -e .[triton]")
    from benchmarks.compiled_kernels import executed_counts

    launcher = Launcher("gfx90a")
    counts = [launcher.run(executed_counts, "gfx90a", "bf16", tokens) for tokens in (256, 512)]
    launcher.close()
    warps = {"forward": 8, "dq": 4, "dkdv": 4}
    for name, rows, products in (("forward", 256, 2), ("dq", 128, 3), ("dkdv", 64, 4)):
        for kernel in (name, f"{name}_plain"):
            executed = warps[name] * (counts[1][kernel]["matrix"] - counts[0][kernel]["matrix"])
            flop = 2 * 16 * 16 * 16 if name == "dkdv" else 2 * 32 * 32 * 8
            assert executed * flop == products * 2 * rows * 256 * 96
