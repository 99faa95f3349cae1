"""A dozen seeded faults in the kernels' text: the emulator notices each."""

from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install -e .[triton]")
from tests.amdgcn.mutants import first_verdict
from tests.kernels.launchers import Launcher

DOZEN = [
    ("wait dropped", 0),
    ("wait dropped", 1),
    ("wait for one less", 0),
    ("barrier dropped", 1),
    ("s_nop one shorter", 0),
    ("s_nop one shorter", 1),
    ("LDS offset", 0),
    ("matrix operands swapped", 0),
    ("matrix dropped", 0),
    ("load dropped", 0),
    ("store dropped", 0),
    ("vector dropped", 0),
]
"""Kinds and seeds. If a change of the kernels makes one of these lines redundant, such as a barrier between
accesses of the same wave, choose another seed."""


@pytest.fixture(scope="module")
def process() -> Iterator[Launcher]:
    running = Launcher("gfx90a")
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.xdist_group("mutants")  # the kernels are executed once without a fault
@pytest.mark.parametrize(("kind", "seed"), DOZEN)
def test_faults_in_the_text_are_noticed(process: Launcher, kind: str, seed: int) -> None:
    mutant, verdict = process.run(first_verdict, kind, seed)
    assert verdict in ("refused", "other values"), mutant
