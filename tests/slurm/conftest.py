"""The cluster, once per test run; skipped with the reason where there is none, failed where CI demands it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cluster as clusters


@pytest.fixture(scope="session")
def cluster() -> Iterator[clusters.Cluster]:
    """A running two-node Slurm."""
    if reason := clusters.missing():
        if os.environ.get("MOESAIC_REQUIRE_SLURM") == "1":
            pytest.fail(f"MOESAIC_REQUIRE_SLURM=1, but no Slurm test cluster: {reason}")
        pytest.skip(f"no Slurm test cluster: {reason}")
    with clusters.start() as running:
        yield running
