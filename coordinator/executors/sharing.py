"""Tensors for members on this machine: written to memory once, read by each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from coordinator.executors.neighbours import Neighbours
from coordinator.nodes.link import NodeLink
from ditmesh.errors import InternalError
from ditmesh.memory_pool import MemoryPool
from ditmesh.shared_memory import Memory, host_id
from ditmesh.shared_tensors import places
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

# More than this is written on a thread: the event loop has streams to serve meanwhile. The text of
# one picture is not: handing it to a thread and back takes longer than writing it.
_INLINE_BYTES = 5 << 20
# What is written between two turns of the event loop.
_PIECE_BYTES = 1 << 20
# Enough for a picture of 1024x1024: its latent, and the model's output.
_KEPT_BYTES = 4 << 20
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
        missing = next((m for link, m in new.items() if _is_here(link) and m), None)
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
        if _is_here(link):
            found = await self._place(needed)
        else:
            found = await self.neighbours.places(link, needed)
        if found is not None:
            self._offered |= {(link, place.tensor) for place in found.tensors}
        return found

    async def _place(self, needed: Sequence[int]) -> tensor_pb2.SharedTensors | None:
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


class CallMemory:
    """What is new in each transformer call, and the output that it leads to.

    One call after another uses the same memory, and who has it mapped keeps it so: new pages take
    longer than what is done with them. Tensors with a hash have no place here, because members
    keep them.
    """

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._mapped = memoryview(b"")
        self._places: tuple[tuple[int, int], ...] = ()
        """Where memory of which size is, the last for the output."""
        self._message: tensor_pb2.CallMemory | None = None

    async def fill(
        self, tensors: Sequence[WireTensor], x: int, members: Sequence[NodeLink]
    ) -> None:
        """Write a call's own tensors, and leave room for an output as large as its `x`, if there
        are members to see it. All members must be done with the call before.
        """
        self._message = None
        if not any(map(_is_here, members)):
            return
        own = {i: tensor for i, tensor in enumerate(tensors) if not tensor.spec.sha256}
        sizes = [tensor.spec.nbytes for tensor in (*own.values(), tensors[x])]
        if sizes != [size for _, size in self._places]:
            self.close()
            try:
                await self._make(sizes)
            except OSError as error:
                log.warning("a call's tensors cannot be shared: %s", error)
                self.close()
        memory, mapped = self._memory, self._mapped
        if memory is None:
            return
        offsets = [offset for offset, _ in self._places]
        for tensor, offset in zip(own.values(), offsets[:-1], strict=True):
            await _copy(tensor.data, mapped, offset)
        if memory is not self._memory:
            # Closed meanwhile.
            return
        filled = places(memory, dict(zip(own, offsets[:-1], strict=True)))
        self._message = tensor_pb2.CallMemory(tensors=filled, output=offsets[-1])

    def seen_by(self, link: NodeLink) -> tensor_pb2.CallMemory | None:
        """Where a member finds it; None: there is nothing for it to find."""
        return self._message if _is_here(link) else None

    def output(self) -> bytes | memoryview:
        """What the leader has written."""
        if self._message is None:
            raise InternalError("an output was written to memory that is not there")
        offset, nbytes = self._places[-1]
        found = self._mapped[offset : offset + nbytes]
        return found if self._is_large else bytes(found)

    def rest(self) -> None:
        """The call is over. Memory of a size that is rare is not kept for the next one."""
        if self._is_large:
            self.close()

    def close(self) -> None:
        """Let go of the memory."""
        memory, self._memory, self._message = self._memory, None, None
        self._mapped, self._places = memoryview(b""), ()
        if memory is not None:
            memory.close()

    @property
    def _is_large(self) -> bool:
        return len(self._mapped) > _KEPT_BYTES

    async def _make(self, sizes: Sequence[int]) -> None:
        memory = self._memory = Memory()
        places = []
        for size in sizes:
            places.append((memory.nbytes, size))
            for at in range(0, size, _PIECE_BYTES):
                memory.leave_room(min(size - at, _PIECE_BYTES))
                await asyncio.sleep(0)
        self._mapped, self._places = memory.map(), tuple(places)


async def _copy(data: bytes | memoryview, into: memoryview, offset: int) -> None:
    """Piece by piece, with turns for others on the event loop."""
    view = memoryview(data)
    for at in range(0, len(view), _PIECE_BYTES):
        if at:
            await asyncio.sleep(0)
        piece = view[at : at + _PIECE_BYTES]
        into[offset + at : offset + at + len(piece)] = piece


def _is_here(link: NodeLink) -> bool:
    """Whether a member can see this process's memory."""
    host = link.report.host if link.report is not None else ""
    return bool(host) and host == host_id()
