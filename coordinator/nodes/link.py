"""The link to one node: its channel, and a stream that tells when it lives and dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable

import grpc
import grpc.aio

from coordinator.lifecycle import node as lifecycle
from coordinator.lifecycle.node import Change, Lost, NodeView, RefusedLoading, Report
from coordinator.nodes import awake
from coordinator.nodes.spare import Spare
from ditmesh import chunk_messages
from ditmesh.given import Given
from ditmesh.reloading import Reloading
from ditmesh.shared_memory import host_id
from ditmesh.v1 import cluster_pb2, node_pb2_grpc, pipeline_pb2_grpc
from ditmesh.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", 8 << 20),
    # A node that restarts should be found again at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Ends every call to a process that was stopped or cut off without a word.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_RETRY_S = 0.2
# A process of ours that is silent for so many times in a row is not merely slow.
_MOST_SILENCES = 2


class NodeLink:
    """One executor process by address. `on_change` hears when it comes and goes."""

    def __init__(
        self,
        address: str,
        *,
        silence_s: float,
        credentials: Reloading[grpc.ChannelCredentials] | None = None,
        on_change: Callable[[NodeLink, Change], None] | None = None,
        ours: bool = False,
    ) -> None:
        """`silence_s`: how long a node may say nothing before it counts as lost. `credentials`:
        for TLS; None calls it unencrypted. `ours`: it is a process beside this one, and a
        supervisor starts it again when this one ends it because it hangs.
        """
        self.address = address
        self.view = NodeView()
        self.seen = False
        self.report: pb.WatchResponse | None = None
        self.given = Given()
        self.runs = Spare(lambda: self.stub.Run())
        self._silence_s = silence_s
        self._on_change = on_change
        self._ours = ours
        self._pid = 0
        self._lost = asyncio.Event()
        self._credentials = credentials
        self._connect(None if credentials is None else credentials.current())

    @property
    def is_here(self) -> bool:
        """Whether it and this process can read one another's memory files."""
        host = self.report.host if self.report is not None else ""
        return bool(host) and host == host_id()

    def _connect(self, credentials: grpc.ChannelCredentials | None) -> None:
        self._used = credentials
        if credentials is None:
            channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(self.address, credentials, options=CHANNEL_OPTIONS)
        self._channel = channel
        calls = chunk_messages.channel(channel)
        self.stub: node_pb2_grpc.NodeServiceAsyncStub = node_pb2_grpc.NodeServiceStub(calls)
        self.pipeline_stub: pipeline_pb2_grpc.PipelineServiceAsyncStub = (
            pipeline_pb2_grpc.PipelineServiceStub(calls)
        )

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self.view.phase is not lifecycle.NodePhase.DOWN

    @property
    def newest_epoch(self) -> int:
        """The newest group that it remembers, 0 for none; it joins only newer ones."""
        return self.report.newest_epoch if self.report is not None else 0

    def models(self) -> dict[str, cluster_pb2.Model]:
        """What is in its folder, by name; nothing while it is down."""
        return {m.model.name: m.model for m in self.report.models} if self.report else {}

    async def lost(self) -> None:
        """Returns when the node is lost; at once if it is, until it speaks again."""
        await self._lost.wait()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Models that it has in memory."""
        return tuple(m.model.name for m in self.report.models if m.loaded) if self.report else ()

    async def watch(self) -> None:
        """Follow the node for good; run as a task."""
        silences = 0
        while True:
            await self._renew()
            call = self.stub.Watch(pb.WatchRequest())
            try:
                # Not wait_for: that can swallow a cancellation, and then nobody stops this loop.
                while True:
                    async with awake.Timeout(self._silence_s):
                        report = await call.read()
                    if not isinstance(report, pb.WatchResponse):
                        break
                    self.report, self.seen = report, True
                    silences, self._pid = 0, report.pid
                    self._apply(
                        Report(
                            report.incarnation,
                            report.epoch,
                            report.draining,
                            bool(report.loading),
                        )
                    )
                self._ended("it closed the connection")
            except TimeoutError:
                # Stopped, swapping or cut off: a connection alone does not tell.
                silences += 1
                why = f"it has said nothing for {silences * self._silence_s:g} s"
                self._apply(Lost(why))
                if silences == _MOST_SILENCES:
                    self.hung(why)
            except grpc.aio.AioRpcError as error:
                self._ended(error.details() or error.code().name)
            finally:
                call.cancel()
            await asyncio.sleep(_RETRY_S)

    def doubt(self, why: str) -> None:
        """Work on it broke off: it counts as lost until it speaks again, within a second if it
        lives.
        """
        self._apply(Lost(why))

    @property
    def loading(self) -> str:
        """The model that it loads, if it said which; empty for none."""
        return self.report.loading if self.report is not None else ""

    def refused_loading(self) -> None:
        """It did not join because it loads weights; its next report tells whether it still does."""
        self._apply(RefusedLoading())

    def hung(self, why: str) -> None:
        """It lives but does not work. If it is ours, it is ended, and started again by whoever did
        that first; another node is freed by leaving its group.
        """
        pid, self._pid = self._pid, 0
        if self._ours and pid:
            self.doubt(why)
            log.error("process %d at %s %s: ending it", pid, self.address, why)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)

    async def close(self) -> None:
        """Close the channel."""
        self.runs.close()
        await self._channel.close()

    async def _renew(self) -> None:
        """Use certificates that were renewed; only where the connection is not in use."""
        if self._credentials is not None and self._credentials.current() is not self._used:
            old = self._channel
            self._connect(self._credentials.current())
            await old.close()

    def _ended(self, why: str) -> None:
        """Its connection broke: the process may be another by now."""
        self._pid = 0
        self._apply(Lost(why))

    def _apply(self, event: Report | RefusedLoading | Lost) -> None:
        known = self.view.incarnation
        self.view, changes = lifecycle.advance(self.view, event)
        if self.view.incarnation != known:
            self.given.clear()
            self.runs.drop()
        if isinstance(event, Lost):
            self.runs.drop()
            self.report = None
            self._lost.set()
        else:
            self._lost.clear()
        for change in changes:
            more = self.view.problem or self.loading
            log.info("node %s is %s %s", self.address, change.name.lower(), more)
            if self._on_change is not None:
                self._on_change(self, change)
