"""Clusters that tests share: one at a time, kept while tests want the same one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.e2e.cluster import Cluster

NODES = 8


class Clusters:
    """Starts clusters, never two at once.

    Tests that want another coordinator get one for the same nodes: starting those takes longest.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._running: Cluster | None = None
        self._exporters: Sequence[str] = ()
        self._key: object = None

    def get(
        self, *, ranks: int, options: Sequence[str] = (), exporters: Sequence[str] = ()
    ) -> Cluster:
        """A cluster with its whole group, whatever earlier tests did to it."""
        if exporters != self._exporters:
            self.stop()
        cluster, self._running = self._running, None  # whatever fails, no test gets it again
        key = (ranks, tuple(options))
        if cluster is None:
            cluster = Cluster(
                self._factory.mktemp("cluster"),
                ranks=ranks,
                nodes=NODES,
                options=options,
                exporters=exporters,
            ).__enter__()
        elif key != self._key:
            cluster.change_coordinator(ranks=ranks, options=options)
        self._running, self._key, self._exporters = cluster, key, exporters
        cluster.wait_for_group()
        return cluster

    def stop(self) -> None:
        """Stop the cluster that runs, if one does. Fails if it does not stop as it should."""
        cluster, self._running = self._running, None
        if cluster is not None:
            cluster.__exit__(None, None, None)
