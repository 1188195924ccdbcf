"""A request's tensors for members on this machine: written to memory once, read by each."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from coordinator.nodes import NodeLink
from ditmesh.shared_memory import MAPPED_FROM_BYTES, Memory, host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import node_pb2

log = logging.getLogger(__name__)

# More than this is written on a thread: the event loop has streams to serve meanwhile.
_INLINE_BYTES = 1 << 20


class Share:
    """The tensors of one request; a context manager, to be left when every member has them.

    Members elsewhere, and those that cannot read the memory, are sent the tensors.
    """

    def __init__(self, tensors: Sequence[WireTensor]) -> None:
        self.tensors = tensors
        self._memory: Memory | None = None
        self._offsets: dict[int, int] = {}
        self._turn = asyncio.Lock()
        self._impossible = False

    async def offer(self, link: NodeLink, needed: Sequence[int]) -> node_pb2.SharedTensors | None:
        """Where a member finds the tensors that it needs; None: they are to be sent."""
        host = link.report.host if link.report is not None else ""
        nbytes = sum(self.tensors[index].spec.nbytes for index in needed)
        if not host or host != host_id() or nbytes < MAPPED_FROM_BYTES:
            return None
        async with self._turn:
            if not self._impossible:
                await self._fill([index for index in needed if index not in self._offsets])
        if self._impossible or self._memory is None:
            return None
        return node_pb2.SharedTensors(
            pid=os.getpid(),
            fd=self._memory.fd,
            token=self._memory.token,
            tensors=[
                node_pb2.SharedTensor(tensor=index, offset=self._offsets[index]) for index in needed
            ],
        )

    async def _fill(self, missing: Sequence[int]) -> None:
        nbytes = sum(self.tensors[index].spec.nbytes for index in missing)
        try:
            if nbytes > _INLINE_BYTES:
                await asyncio.to_thread(self._write, missing)
            else:
                self._write(missing)
        except OSError as error:
            # Such as a limit on memory: what is sent needs less of it at a time.
            log.warning("%d bytes cannot be shared: %s", nbytes, error)
            self._impossible = True

    def _write(self, missing: Sequence[int]) -> None:
        if self._memory is None:
            self._memory = Memory()
        for index in missing:
            self._offsets[index] = self._memory.add(self.tensors[index])

    def close(self) -> None:
        """Let go of the memory."""
        if self._memory is not None:
            self._memory.close()

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
