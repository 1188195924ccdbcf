"""Memory for what is new in each transformer call, and for the output that it leads to.

Who makes calls has one `CallMemory` for each stream of them; who answers them on the same machine
sees it by way of `attached_memory`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from ditmesh.errors import InternalError
from ditmesh.shared_memory import Memory
from ditmesh.shared_tensors import places
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

# What is written between two turns of an event loop.
_PIECE_BYTES = 1 << 20
# Enough for two pictures of 1024x1024: their latents, and the output for them.
_KEPT_BYTES = 8 << 20


class CallMemory:
    """One call after another uses the same memory, and who has it mapped keeps it so: new pages
    take longer than what is done with them. Tensors with a hash have no place here, because those
    who read them keep them.
    """

    def __init__(self) -> None:
        self.message: tensor_pb2.CallMemory | None = None
        """Where the present call has its tensors; None: they are not in memory."""
        self._memory: Memory | None = None
        self._mapped = memoryview(b"")
        self._places: tuple[tuple[int, int], ...] = ()
        """Where memory of which size is, the last for the output."""

    def fill(self, tensors: Sequence[WireTensor], x: int) -> Iterator[None]:
        """Write a call's own tensors, and leave room for an output as large as its `x`.

        It is done, and `message` set, when the iterator ends; between two of its steps others may
        have their turn. Whoever read the call before must be done with it.
        """
        self.message = None
        own = {i: tensor for i, tensor in enumerate(tensors) if not tensor.spec.sha256}
        sizes = [tensor.spec.nbytes for tensor in (*own.values(), tensors[x])]
        if sizes != [size for _, size in self._places]:
            self.close()
            try:
                yield from self._make(sizes)
            except OSError as error:
                # Such as a limit on memory: what is sent needs less of it at a time.
                log.warning("a call's tensors cannot be shared: %s", error)
                self.close()
        memory, mapped = self._memory, self._mapped
        if memory is None:
            return
        *offsets, room = (offset for offset, _ in self._places)
        for tensor, offset in zip(own.values(), offsets, strict=True):
            yield from copy_in_pieces(tensor.data, mapped[offset:])
        if memory is not self._memory:
            # Closed meanwhile.
            return
        filled = places(memory, dict(zip(own, offsets, strict=True)))
        self.message = tensor_pb2.CallMemory(tensors=filled, output=room)

    @property
    def output(self) -> memoryview:
        """The room for the present call's output, as large as its `x`. The next call has it again,
        unless it `is_large`. Raises InternalError when the call is not in memory.
        """
        if self.message is None:
            raise InternalError("an output was written to memory that is not there")
        offset, nbytes = self._places[-1]
        return self._mapped[offset : offset + nbytes]

    @property
    def is_large(self) -> bool:
        """Whether it is given up when the call is over."""
        return len(self._mapped) > _KEPT_BYTES

    def rest(self) -> None:
        """The call is over. Memory of a size that is rare is not kept for the next one."""
        if self.is_large:
            self.close()

    def close(self) -> None:
        """Let go of the memory. Whoever may still be writing writes to nobody's memory then."""
        memory, self._memory, self.message = self._memory, None, None
        self._mapped, self._places = memoryview(b""), ()
        if memory is not None:
            memory.close()

    def _make(self, sizes: Sequence[int]) -> Iterator[None]:
        memory = self._memory = Memory()
        places = []
        for size in sizes:
            places.append((memory.nbytes, size))
            for at in range(0, size, _PIECE_BYTES):
                memory.leave_room(min(size - at, _PIECE_BYTES))
                yield
        self._mapped, self._places = memory.map(), tuple(places)


def copy_in_pieces(data: bytes | memoryview, into: memoryview) -> Iterator[None]:
    """Write data to the beginning of `into`, which must have room for it; done when the iterator
    ends, and with turns for others in between.
    """
    view = memoryview(data)
    for at in range(0, len(view), _PIECE_BYTES):
        if at:
            yield
        piece = view[at : at + _PIECE_BYTES]
        into[at : at + len(piece)] = piece
