"""Clusters for the end-to-end tests: one at a time, kept while tests want the same one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.e2e.cluster import Cluster


class Clusters:
    """Starts clusters. Before another one starts, the one that runs is stopped."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._running: Cluster | None = None
        self._key: object = None

    def get(self, name: str, *, ranks: int, options: Sequence[str] = ()) -> Cluster:
        """The cluster of that name with its whole group, whatever earlier tests did to it."""
        key = (name, ranks, tuple(options))
        if self._running is None or key != self._key:
            self.stop()
            cluster = Cluster(self._factory.mktemp(name), ranks=ranks, options=options)
            self._running, self._key = cluster.__enter__(), key
        self._running.wait_for_group()
        return self._running

    def stop(self) -> None:
        """Stop the cluster that runs, if one does. Fails if it does not stop as it should."""
        cluster, self._running = self._running, None
        if cluster is not None:
            cluster.__exit__(None, None, None)


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
