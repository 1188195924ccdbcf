"""A stream for the next job on a node, open before there is one: opening takes longer than a
message does, on both sides.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import grpc.aio

from ditmesh.v1 import node_pb2 as pb

RunStream = grpc.aio.StreamStreamCall[pb.RunRequest, pb.RunResponse]

# Not at once: the job that has just been given its stream comes first.
_SOON_S = 0.05


class Spare:
    """At most one stream in store."""

    def __init__(self, open_stream: Callable[[], RunStream]) -> None:
        self._open_stream = open_stream
        self._stream: RunStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self) -> RunStream:
        """The stream in store, or a new one."""
        stream, self._stream = self._stream, None
        return stream if stream is not None and not stream.done() else self._open_stream()

    def refill(self) -> None:
        """Have one in store soon."""
        if self._closed or self._timer is not None or self._stream is not None:
            return
        # In no job's context: its trace would be held for as long as nobody wants the stream.
        self._timer = asyncio.get_running_loop().call_later(
            _SOON_S, self._fill, context=contextvars.Context()
        )

    def drop(self) -> None:
        """The node may be another process from now on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.cancel()
        self._timer = self._stream = None

    def close(self) -> None:
        """There will be no more jobs."""
        self.drop()
        self._closed = True

    def _fill(self) -> None:
        self._timer = None
        self._stream = self._open_stream()
