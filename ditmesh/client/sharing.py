"""What a client and a server on one machine share memory for, besides the stream between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ditmesh.client.conditioning import Conditioning
from ditmesh.given import Given
from ditmesh.output_rooms import OutputRooms
from ditmesh.shared_memory import Memory, host_id
from ditmesh.shared_tensors import places
from ditmesh.tensors import HashedTensor, WireTensor
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

# Less is sent as fast as it is written.
_LEAST_BYTES = 256 << 10
# More is not written at once: whoever writes it may be an event loop.
_MOST_BYTES = 64 << 20
# Less is written in less time than it takes to begin a thread.
_AHEAD_BYTES = 1 << 20


class Sharing:
    """What one client knows of its server from job to job. Thread-safe."""

    def __init__(self) -> None:
        self.host = host_id()
        """Tells the server where this process is; empty where memory cannot be shared."""
        self.rooms = OutputRooms()
        """For results."""
        self._server_reads = False
        self._given = Given()
        self._lock = threading.Lock()

    def accepted(self, tensors: Sequence[WireTensor], *, server_reads: bool) -> None:
        """The server has these, and can read this process's memory or not."""
        with self._lock:
            self._server_reads = server_reads
            self._given.add(t.spec.sha256 for t in tensors if t.spec.sha256)

    def to_offer(self, tensors: Sequence[WireTensor]) -> list[int]:
        """The tensors that the server may lack, if it can read them here."""
        with self._lock:
            if not self._server_reads:
                return []
            return [
                i
                for i, tensor in enumerate(tensors)
                if tensor.spec.sha256 not in self._given and not isinstance(tensor, HashedTensor)
            ]

    def write_ahead(self, *given: object) -> WrittenAhead | None:
        """Begin to write what is new of these, conditionings or not, while it is hashed.

        None where that is not worth it.
        """
        with self._lock:
            if not self._server_reads:
                return None
        new = [c for c in given if isinstance(c, Conditioning) and not c.is_hashed]
        tensors = [tensor for c in new for tensor in c.tensors.values()]
        nbytes = sum(tensor.spec.nbytes for tensor in tensors)
        return WrittenAhead(tensors) if _AHEAD_BYTES <= nbytes <= _MOST_BYTES else None


class WrittenAhead:
    """Tensors that are being written to memory."""

    def __init__(self, tensors: Sequence[WireTensor]) -> None:
        self._tensors = tensors
        self._memory: Memory | None = None
        self._offsets: dict[int, int] = {}
        # Not a pool's: a process that was forked would wait for a thread that it does not have.
        self._thread = threading.Thread(target=self._write, name="ditmesh-share", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        try:
            memory = Memory()
            self._offsets = {id(tensor.data): memory.add(tensor) for tensor in self._tensors}
            self._memory = memory
        except OSError as error:
            _no_room(error)

    def wait(self) -> tuple[Memory, dict[int, int]] | None:
        """The memory, and by the `id` of each tensor's data where in it that is; None: there was
        no room.
        """
        self._thread.join()
        return None if self._memory is None else (self._memory, self._offsets)


class SharedInputs:
    """A job's tensors in memory, for as long as the server has not taken them."""

    def __init__(self, tensors: Sequence[WireTensor], ahead: WrittenAhead | None = None) -> None:
        """`ahead`: some of them, already on their way."""
        self._tensors = tensors
        self._ahead = ahead
        self._memory: Memory | None = None
        self._tried: frozenset[int] = frozenset()

    def share(self, indices: Sequence[int]) -> tensor_pb2.SharedTensors | None:
        """Where tensors are now; None: they are to be sent, as nobody reads them here either."""
        nbytes = sum(self._tensors[index].spec.nbytes for index in indices)
        if not _LEAST_BYTES <= nbytes <= _MOST_BYTES or self._tried & {*indices}:
            return None
        self._tried |= {*indices}
        ahead, self._ahead = self._ahead, None
        written = ahead.wait() if ahead is not None else None
        try:
            memory, known = written or (Memory(), {})
            data = {i: self._tensors[i].data for i in indices}
            offsets = {
                i: known[id(d)] if id(d) in known else memory.add(self._tensors[i])
                for i, d in data.items()
            }
            memory.seal()
        except OSError as error:
            _no_room(error)
            return None
        self._memory = memory
        return places(memory, offsets)

    def close(self) -> None:
        """The server has what it will have: what it reads, it has mapped."""
        memory, self._memory, self._ahead = self._memory, None, None
        if memory is not None:
            memory.close()


def _no_room(error: OSError) -> None:
    # Such as a limit on memory: what is sent needs less of it at a time.
    log.warning("inputs cannot be shared, and are sent: %s", error)
