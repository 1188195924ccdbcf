"""The link to a node: whether it lives, and certificates that are renewed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from coordinator.lifecycle.node import Change
from coordinator.nodes.link import NodeLink
from ditmesh.security import TlsFiles
from ditmesh.v1 import node_pb2 as pb
from ditmesh.v1 import node_pb2_grpc
from tests.certificates import Authority
from tests.coordinator.fakes import run, until
from tests.ports import free_address


class Node(node_pb2_grpc.NodeServiceServicer):
    """Says that it lives, until its stream ends."""

    def Watch(
        self, request: pb.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchResponse]:
        over = threading.Event()
        if not context.add_callback(over.set):
            return
        while True:
            yield pb.WatchResponse(incarnation="1")
            if over.wait(0.5):
                return

    def Run(
        self, requests: Iterator[pb.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RunResponse]:
        """Waits for a job."""
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait()
        yield from ()


@contextmanager
def node(address: str, files: TlsFiles | None = None) -> Iterator[None]:
    """A node that listens at `address`."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        node_pb2_grpc.add_NodeServiceServicer_to_server(Node(), server)  # type: ignore[no-untyped-call]
        if files is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, files.server_credentials())
        server.start()
        yield
        server.stop(None).wait()


def test_a_node_of_a_new_authority_is_found_with_renewed_files(tmp_path: Path) -> None:
    """A link outlives its certificates: with those that it began with it would never come back."""
    first, second = Authority(tmp_path / "1"), Authority(tmp_path / "2")
    theirs = first.issue(tmp_path / "node", "node").files
    mine = first.issue(tmp_path / "coordinator", "coordinator").files

    async def follow() -> None:
        address = free_address()
        with node(address, theirs):
            link = NodeLink(address, silence_s=5, credentials=mine.channel_credentials())
            watching = asyncio.create_task(link.watch())
            await until(lambda: link.up)
            link.runs.refill()
            await until(lambda: link.runs._stream is not None)
        await until(lambda: not link.up)
        # It was the lost process's.
        assert link.runs._stream is None
        second.issue(tmp_path / "node", "node")
        with node(address, theirs):
            second.issue(tmp_path / "coordinator", "coordinator")
            await until(lambda: link.up)
            watching.cancel()
            await asyncio.wait([watching])
            await link.close()

    run(follow())


def test_a_coordinator_that_stood_still_blames_no_node() -> None:
    """It has not listened for longer than a node may be silent."""

    async def follow() -> None:
        changes: list[Change] = []
        address = free_address()
        with node(address):
            link = NodeLink(
                address, silence_s=1.0, on_change=lambda _, change: changes.append(change)
            )
            watching = asyncio.create_task(link.watch())
            try:
                await until(lambda: link.up)
                for _ in range(3):
                    time.sleep(1.5)
                    await asyncio.sleep(0.05)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
                await link.close()
        assert changes == [Change.UP]

    run(follow())
