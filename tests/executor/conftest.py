"""One executor for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ditmesh.executor.servicer import ServicerLimits
from tests.executor.node import Node, serving


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One executor for all tests of this file."""
    limits = ServicerLimits(max_request_bytes=1 << 20, state_every_s=0.0, step_every_s=0.0)
    with serving(tmp_path_factory.mktemp("node"), limits) as n:
        yield n


@pytest.fixture(autouse=True)
def idle_afterwards(node: Node) -> Iterator[None]:
    """Whatever a test did, the torch thread is free again soon, and the hooks are gone."""
    yield
    node.before.clear()
    node.servicer._torch_thread.submit(lambda: None).result(timeout=20)
