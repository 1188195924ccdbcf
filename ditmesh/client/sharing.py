"""What a client and a server on one machine share memory for, besides the stream between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
# Less is written in less time than it takes to have a thread do it.
_AHEAD_BYTES = 1 << 20


class Sharing:
    """What one client knows of its server from job to job. Thread-safe."""

    def __init__(self) -> None:
        self.host = host_id()
        """Tells the server where this process is; empty where memory cannot be shared."""
        self.rooms = OutputRooms()
        """For results."""
        self._hashing = ThreadPoolExecutor(1, "ditmesh-hash")
        self._server_reads = False
        self._given = Given()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the thread that hashes end."""
        self._hashing.shutdown(wait=False)

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

    def write_ahead(self, *given: object) -> Written | None:
        """Write what is new of these, conditionings or not, and have it hashed meanwhile.

        None where that is not worth it, or there is no room. Raises InvalidTensor for what cannot
        be sent.
        """
        with self._lock:
            if not self._server_reads:
                return None
        new = [c for c in given if isinstance(c, Conditioning) and not c.is_hashed]
        tensors = [tensor for c in new for tensor in c.tensors.values()]
        nbytes = sum(tensor.spec.nbytes for tensor in tensors)
        if not _AHEAD_BYTES <= nbytes <= _MOST_BYTES:
            return None
        hashing = self._hashing.submit(lambda: [c.wire for c in new])
        try:
            return Written(tensors)
        except OSError as error:
            _no_room(error)
            return None
        finally:
            hashing.result()


class Written:
    """Tensors in memory."""

    def __init__(self, tensors: Sequence[WireTensor]) -> None:
        """Raises OSError when there is no room."""
        self.memory = Memory()
        self._tensors = tensors
        self._offsets = {id(tensor.data): self.memory.add(tensor) for tensor in tensors}

    def add(self, tensor: WireTensor) -> int:
        """Where a tensor is; it is written unless it is there. Raises OSError."""
        known = self._offsets.get(id(tensor.data))
        return self.memory.add(tensor) if known is None else known


class SharedInputs:
    """A job's tensors in memory, for as long as the server has not taken them."""

    def __init__(self, tensors: Sequence[WireTensor], ahead: Written | None = None) -> None:
        """`ahead`: some of them."""
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
        try:
            written = ahead or Written(())
            offsets = {index: written.add(self._tensors[index]) for index in indices}
            written.memory.seal()
        except OSError as error:
            _no_room(error)
            return None
        self._memory = written.memory
        return places(written.memory, offsets)

    def close(self) -> None:
        """The server has what it will have: what it reads, it has mapped."""
        memory, self._memory, self._ahead = self._memory, None, None
        if memory is not None:
            memory.close()


def _no_room(error: OSError) -> None:
    # Such as a limit on memory: what is sent needs less of it at a time.
    log.warning("inputs cannot be shared, and are sent: %s", error)
