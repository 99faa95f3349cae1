"""Fixtures of the kernel tests."""

from collections.abc import Iterator

import pytest

from tests.kernels.launchers import Launcher


@pytest.fixture(scope="module", params=["interpreter", "gfx90a"])
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    """A process that runs kernels in Triton's interpreter, and one that runs those compiled for gfx90a."""
    running = Launcher(request.param)
    yield running
    running.close()


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Launcher]:
    """A process that runs kernels in Triton's interpreter."""
    running = Launcher("interpreter")
    yield running
    running.close()
