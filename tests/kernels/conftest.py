"""Fixtures of the kernel tests."""

from collections.abc import Callable, Iterator

import pytest

from tests.kernels.launchers import ON_DEVICE, Launcher


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[str], Launcher]]:
    """Start a launcher by its name, once in a module."""
    running: dict[str, Launcher] = {}

    def get(name: str) -> Launcher:
        if name not in running:
            running[name] = Launcher(name)
        return running[name]

    yield get
    for launcher in running.values():
        launcher.close()


@pytest.fixture(params=["interpreter", "gfx90a", *ON_DEVICE])
def launcher(request: pytest.FixtureRequest, start: Callable[[str], Launcher]) -> Launcher:
    """Run kernels in Triton's interpreter, compiled for gfx90a in the emulator, and on a GPU if there is one.

    With an empty Triton cache, all tests on the emulator take about 220 s of processor time.
    """
    return start(request.param)


@pytest.fixture
def interpreter(start: Callable[[str], Launcher]) -> Launcher:
    """Run kernels in Triton's interpreter."""
    return start("interpreter")
