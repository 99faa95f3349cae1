"""The cluster that all tests of this folder share."""

from collections.abc import Iterator

import pytest

from .cluster import SlurmCluster, running_cluster, why_unavailable


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A running Slurm cluster of two nodes with two processors each, both on this host."""
    if (reason := why_unavailable()) is not None:
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
