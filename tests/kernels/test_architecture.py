from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install -e .[triton]")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from aqtopo_kernels.architecture import architecture


@pytest.mark.parametrize(
    ("backend", "arch", "row"),
    [
        ("hip", "gfx90a", "gfx90a"),
        ("hip", "gfx942", "gfx942"),
        ("hip", "gfx950", "gfx942"),
        ("cuda", 80, "sm_80"),
        ("cuda", 89, "sm_80"),
        ("cuda", 90, "sm_90"),
        ("cuda", 120, "sm_90"),
    ],
)
def test_a_device_takes_the_row_of_its_family(
    backend: str, arch: int | str, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(backend, arch, monkeypatch)
    assert architecture() == row


@pytest.mark.parametrize(
    ("backend", "arch"), [("hip", "gfx906"), ("hip", "gfx908"), ("hip", "gfx1100"), ("cuda", 75)]
)
def test_a_device_without_the_matrix_instructions_is_refused_by_name(
    backend: str, arch: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(backend, arch, monkeypatch)
    with pytest.raises(ValueError, match=f"this device is {backend} {arch}"):
        architecture()


def pretend(backend: str, arch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget(backend, arch, 64 if backend == "hip" else 32)

    monkeypatch.setattr(driver, "_active", Driver())
