"""Memory that calls on the CPU reuse: one set for each thread, and never part of a result."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from aqtopo_kernels import elevation_attention
from aqtopo_kernels.elevation_attention import workspace as module
from aqtopo_kernels.elevation_attention.workspace import Workspace

from .test_elevation_attention import differentiate, make_arguments, random_orders


def gradients(tokens: int, seed: int) -> tuple[Tensor, ...]:
    order = random_orders(2, tokens, seed)
    return tuple(differentiate(elevation_attention, make_arguments(tokens=tokens, seed=seed), order))


def test_a_later_call_does_not_change_results() -> None:
    results = gradients(50, seed=1)
    before = [x.clone() for x in results]
    gradients(60, seed=2)
    for now, then in zip(results, before, strict=True):
        assert torch.equal(now, then)


def test_threads_do_not_share_memory() -> None:
    alone = [gradients(80, seed) for seed in range(4)]
    with ThreadPoolExecutor(max_workers=4) as threads:
        together = list(threads.map(lambda seed: gradients(80, seed), list(range(4)) * 5))
    for found, expected in zip(together, alone * 5, strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_training_after_a_first_call_within_inference_mode() -> None:
    def work() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            elevation_attention(**make_arguments(tokens=30))
        return gradients(30, seed=1)

    with ThreadPoolExecutor(max_workers=1) as new_thread:
        found = new_thread.submit(work).result()
    for one, other in zip(found, gradients(30, seed=1), strict=True):
        assert torch.equal(one, other)


def test_memory_is_reused_and_grows() -> None:
    workspace = Workspace()
    first = workspace.empty("x", (4, 8), torch.float32)
    assert workspace.empty("x", (3, 5), torch.float32).data_ptr() == first.data_ptr()
    assert workspace.empty("y", (4, 8), torch.float32).data_ptr() != first.data_ptr()
    assert workspace.empty("x", (4, 8), torch.float64).dtype == torch.float64
    larger = workspace.empty("x", (9, 8), torch.float32)
    assert larger.shape == (9, 8)
    assert workspace.empty("x", (4, 8), torch.float32).data_ptr() == larger.data_ptr()


def test_large_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_KEPT", 100)
    workspace = Workspace()
    first = workspace.empty("x", (26,), torch.float32)
    assert workspace.empty("x", (26,), torch.float32).data_ptr() != first.data_ptr()
