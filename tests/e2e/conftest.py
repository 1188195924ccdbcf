"""The clusters that most end-to-end tests use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.clusters import Clusters

HERE = Path(__file__).parent
ORDER = {"eight": 0, "brittle": 1, "two": 3, "deaf": 4, "shell": 5}
"""Fixtures by the order in which tests that use them run; tests with other clusters come third."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a cluster run one after another, so that it starts once."""
    places = [i for i, item in enumerate(items) if item.path.parent == HERE]
    mine = sorted((items[i] for i in places), key=_place)
    for i, item in zip(places, mine, strict=True):
        items[i] = item


def _place(item: pytest.Item) -> int:
    used = getattr(item, "fixturenames", ())
    return next((place for name, place in ORDER.items() if name in used), 2)


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """See `Clusters`; the last one is stopped at the end."""
    running = Clusters(tmp_path_factory)
    yield running
    running.stop()


@pytest.fixture
def eight(clusters: Clusters) -> Cluster:
    """Eight ranks, Ulysses 8, as users run them; only silence shows that a rank hangs."""
    return clusters.get(ranks=8, options=("--reattach", "5", "--collective-timeout", "600"))


@pytest.fixture
def brittle(clusters: Clusters) -> Cluster:
    """Eight ranks that form a group only together, and jobs that do not wait for one."""
    return clusters.get(ranks=8, options=("--min-ranks", "8", "--regroup-wait", "0"))


@pytest.fixture
def two(clusters: Clusters) -> Cluster:
    """Two ranks, for what does not depend on the mesh."""
    return clusters.get(ranks=2)


@pytest.fixture(scope="session")
def _deaf() -> Iterator[tuple[str, str]]:
    """A collector that refuses connections, and one that takes them and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield "127.0.0.1:1", f"127.0.0.1:{silent.getsockname()[1]}"


@pytest.fixture
def deaf(clusters: Clusters, _deaf: tuple[str, str]) -> Cluster:
    """Two ranks, in processes that no other fixture has. Their collectors do not answer: no job
    may notice.
    """
    refusing, silent = _deaf
    return clusters.get(
        ranks=2,
        options=("--otlp-endpoint", silent),
        exporters=("--exporter", "otlp", "--exporter", "file", "--otlp-endpoint", refusing),
    )
