"""The clusters that most end-to-end tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.clusters import Clusters

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a cluster run one after another, so that it starts once."""
    places = [i for i, item in enumerate(items) if item.path.parent == HERE]
    mine = sorted((items[i] for i in places), key=_cluster)
    for i, item in zip(places, mine, strict=True):
        items[i] = item


def _cluster(item: pytest.Item) -> str:
    names = getattr(item, "fixturenames", ())
    return next((name for name in ("eight", "brittle") if name in names), "of its own")


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """See `Clusters`; the last one is stopped at the end."""
    running = Clusters(tmp_path_factory)
    yield running
    running.stop()


@pytest.fixture
def eight(clusters: Clusters) -> Cluster:
    """Eight ranks, Ulysses 8, as users run them; only silence shows that a rank hangs."""
    return clusters.get(
        "eight", ranks=8, options=("--reattach", "5", "--collective-timeout", "600")
    )


@pytest.fixture
def brittle(clusters: Clusters) -> Cluster:
    """Eight ranks that form a group only together, and jobs that do not wait for one."""
    return clusters.get("brittle", ranks=8, options=("--min-ranks", "8", "--regroup-wait", "0"))
