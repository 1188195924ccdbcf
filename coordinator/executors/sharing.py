"""Tensors for members on this machine: written to memory once, read by each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from coordinator.executors.neighbours import Neighbours
from coordinator.nodes.link import NodeLink
from ditmesh.memory_pool import MemoryPool
from ditmesh.shared_memory import Memory
from ditmesh.shared_tensors import places, places_of
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

# More than this is written on a thread: the event loop has streams to serve meanwhile. The text of
# one picture is not: handing it to a thread and back takes longer than writing it.
_INLINE_BYTES = 5 << 20
# One for all executors: what the next job needs is of the sizes that the last one had.
_POOL = MemoryPool()


class Share:
    """The tensors of one request; a context manager, to be left when every member has them.

    Of members that share another machine, one is sent the tensors and passes them on. Those that
    cannot read such memory are sent them as well.
    """

    def __init__(self, tensors: Sequence[WireTensor]) -> None:
        self.tensors = tensors
        self.neighbours = Neighbours({})
        self._written: list[tuple[Memory, Mapping[int, int]]] = []
        """Each with where in it which tensors are. One will do, unless members lack others."""
        self._offered: set[tuple[NodeLink, int]] = set()
        self._turn = asyncio.Lock()
        self._writing: asyncio.Task[object] | None = None
        self._impossible = False

    def write_ahead(self, links: Iterable[NodeLink]) -> None:
        """Begin to write what members were not given before, while they are being reached, and
        find out who passes on what.
        """
        new = {link: self.new_to(link) for link in links}
        missing = next((m for link, m in new.items() if link.is_here and m), None)
        if missing is not None:
            self._writing = asyncio.create_task(self._place(missing))
        self.neighbours = Neighbours({link: self._nbytes(m) for link, m in new.items()})

    def new_to(self, link: NodeLink) -> list[int]:
        """The tensors that a member was not given before."""
        specs = enumerate(tensor.spec for tensor in self.tensors)
        return [i for i, spec in specs if not spec.sha256 or spec.sha256 not in link.given]

    def given_to(self, link: NodeLink) -> None:
        """A member has all tensors."""
        link.given.add(tensor.spec.sha256 for tensor in self.tensors if tensor.spec.sha256)

    async def offer(self, link: NodeLink, needed: Sequence[int]) -> tensor_pb2.SharedTensors | None:
        """Where a member finds tensors; None: it will not find them, they are to be sent."""
        wanted = {(link, index) for index in needed}
        if not wanted or wanted & self._offered:
            # What a member lacks although it was offered, it could not read.
            return None
        if link.is_here:
            found = await self._place(needed)
        else:
            found = await self.neighbours.places(link, needed)
        if found is not None:
            self._offered |= {(link, place.tensor) for place in found.tensors}
        return found

    async def _place(self, needed: Sequence[int]) -> tensor_pb2.SharedTensors | None:
        there = places_of({index: self.tensors[index] for index in needed})
        if there is not None:
            return there
        nbytes = self._nbytes(needed)
        async with self._turn:
            for memory, offsets in self._written:
                if offsets.keys() >= set(needed):
                    return places(memory, {index: offsets[index] for index in needed})
            if self._impossible:
                return None
            try:
                if nbytes > _INLINE_BYTES:
                    written = await asyncio.to_thread(self._write, needed, nbytes)
                else:
                    written = self._write(needed, nbytes)
            except OSError as error:
                # Such as a limit on memory: what is sent needs less of it at a time.
                log.warning("%d bytes cannot be shared: %s", nbytes, error)
                self._impossible = True
                return None
            self._written.append(written)
            return places(*written)

    def _nbytes(self, indices: Sequence[int]) -> int:
        return sum(self.tensors[index].spec.nbytes for index in indices)

    def _write(self, needed: Sequence[int], nbytes: int) -> tuple[Memory, Mapping[int, int]]:
        memory = _POOL.take(nbytes)
        offsets = {index: memory.add(self.tensors[index]) for index in needed}
        memory.publish()
        return memory, offsets

    def close(self) -> None:
        """Let go of the memory."""
        if self._writing is not None:
            self._writing.cancel()
        for memory, _ in self._written:
            _POOL.give_back(memory)

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
