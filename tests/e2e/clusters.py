"""Clusters that tests share: one at a time, kept while tests want the same one."""

from __future__ import annotations

from collections.abc import Sequence

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
