"""Memory that the calls of one `Predict` stream share with a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ditmesh.call_memory import CallMemory
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2


class StreamMemory:
    """Nothing until the server has said that it shares memory, and nothing once it could not
    read it.
    """

    def __init__(self) -> None:
        self._memory = CallMemory()
        self._offered = self._useless = False

    @property
    def message(self) -> tensor_pb2.CallMemory | None:
        """Where the present call has its tensors; None: they are to be sent."""
        return self._memory.message

    @property
    def output(self) -> memoryview:
        """The room for the present call's output. Raises InternalError when there is none."""
        return self._memory.output

    def fill(self, tensors: Sequence[WireTensor], x: int) -> Iterator[None]:
        """As `CallMemory.fill`, if calls can have memory."""
        if self._offered and not self._useless:
            yield from self._memory.fill(tensors, x)
            self._useless = self.message is None

    def offered(self) -> None:
        """The server has said that calls may come with memory."""
        self._offered = True

    def unreadable(self) -> None:
        """The server has asked for what is in memory: it cannot read it."""
        self._useless = True
        self.close()

    def rest(self) -> None:
        """The call was answered whole: the server is done with the memory."""
        self._memory.rest()

    def close(self) -> None:
        """Let go of the memory: of a call that failed, the server may be writing to it still."""
        self._memory.close()
