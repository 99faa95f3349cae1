from contextlib import nullcontext

import pytest
import torch

from aqtopo_kernels import Backend, backend_for, better_than_torch, elevation_attention, wind_gather
from aqtopo_kernels.backend import current_device


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", Backend.CPU), ("meta", Backend.CPU), ("cuda", Backend.TRITON), ("cuda:3", Backend.TRITON)],
)
def test_the_device_decides(device: str, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend_for(device) is backend


def test_the_interpreter_runs_triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for("cpu") is Backend.TRITON


def test_a_device_without_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="CPU, CUDA and ROCm devices, but the tensors are on 'xpu'"):
        backend_for("xpu")


def test_missing_triton_is_an_error_without_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("aqtopo_kernels.backend.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="wind_gather needs Triton"):
        wind_gather(torch.zeros(1, 2, 3), torch.tensor([[1, 0]]))


@pytest.mark.parametrize(("width", "dtype"), [(24, torch.float32), (272, torch.float32), (16, torch.float64)])
def test_triton_refuses_heads_it_has_no_kernels_for(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q = torch.zeros(1, 1, 2, width, dtype=dtype)
    with pytest.raises(ValueError, match="multiple of 16 up to 256"):
        elevation_attention(q, q, q, torch.zeros(1, 2), torch.zeros(1))


def test_bfloat16_is_refused_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q = torch.zeros(1, 1, 2, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"elevation_attention .* bfloat16 in Triton's interpreter"):
        elevation_attention(q, q, q, torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"wind_gather .* bfloat16 in Triton's interpreter"):
        wind_gather(q[0], torch.tensor([[1, 0]]), q[0])


def test_a_kernel_is_launched_on_its_tensors_device() -> None:
    """Triton launches on the current device, and pointers of another are an illegal access there."""
    guard = current_device(torch.device("cuda", 3))
    assert isinstance(guard, torch.cuda.device)
    assert guard.idx == 3
    assert isinstance(current_device(torch.device("cpu")), nullcontext)


def test_plain_attention_on_the_cpu_uses_pytorch() -> None:
    assert not better_than_torch("cpu", torch.float32, 96)


@pytest.mark.parametrize(("arch", "expected"), [("gfx90a:sramecc+:xnack-", True), ("gfx942", False)])
def test_plain_attention_uses_the_kernels_where_pytorch_is_slower(
    arch: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        gcnArchName = arch  # noqa: N815

    monkeypatch.setattr(torch.version, "hip", "7.2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert better_than_torch("cuda", torch.bfloat16, 96) is expected
    assert not better_than_torch("cuda", torch.float64, 96)
    assert better_than_torch("cuda", torch.float32, 128) is expected
    for dtype, width in ((torch.bfloat16, 24), (torch.float16, 112), (torch.float32, 144)):
        assert not better_than_torch("cuda", dtype, width)
