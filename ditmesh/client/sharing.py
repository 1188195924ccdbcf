"""What a client and a server on one machine share memory for, besides the stream between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

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


class SharedInputs:
    """A job's tensors in memory, for as long as the server has not taken them."""

    def __init__(self, tensors: Sequence[WireTensor]) -> None:
        self._tensors = tensors
        self._memory: Memory | None = None
        self.tried: frozenset[int] = frozenset()
        """Those that were put there: who asks for them afterwards could not read them."""

    def share(self, indices: Sequence[int]) -> tensor_pb2.SharedTensors | None:
        """Where tensors are now; None: they are to be sent."""
        nbytes = sum(self._tensors[index].spec.nbytes for index in indices)
        if not _LEAST_BYTES <= nbytes <= _MOST_BYTES or self.tried & {*indices}:
            return None
        self.tried |= {*indices}
        try:
            memory = self._memory = Memory()
            offsets = {index: memory.add(self._tensors[index]) for index in indices}
            memory.seal()
        except OSError as error:
            # Such as a limit on memory: what is sent needs less of it at a time.
            log.warning("%d bytes cannot be shared: %s", nbytes, error)
            return None
        return places(memory, offsets)

    def close(self) -> None:
        """The server has what it will have: what it reads, it has mapped."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
