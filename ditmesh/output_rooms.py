"""Room in this process's memory, for another process to write one tensor to."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections import deque

import numpy as np
import numpy.typing as npt

from ditmesh import shared_memory
from ditmesh.shared_memory import Memory
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

LARGEST_BYTES = 16 << 20
"""Of one room: getting it holds up an event loop, and keeps as much memory."""
_SMALLEST_BYTES = 16 << 10
"""Less is sent as fast as it is written."""
_MOST_IDLE = 4


class OutputRoom:
    """Room for one tensor of `nbytes` bytes; `OutputRooms.take` makes it."""

    def __init__(self, nbytes: int) -> None:
        """Raises OSError where memory is not to be had."""
        self.nbytes = nbytes
        self._copy: npt.NDArray[np.uint8] | None = None
        self._memory = Memory()
        try:
            self._offset = self._memory.leave_room(nbytes)
        except OSError:
            self._memory.close()
            raise

    @property
    def message(self) -> tensor_pb2.CallMemory:
        """Where it is, for who is to write."""
        memory = self._memory
        place = tensor_pb2.SharedTensors(pid=os.getpid(), fd=memory.fd, token=memory.token)
        return tensor_pb2.CallMemory(tensors=place, output=self._offset)

    def expect(self) -> None:
        """Have memory for `read` now, while there is time: getting new pages takes some."""
        copy = np.zeros(self.nbytes, np.uint8)
        copy[:: mmap.PAGESIZE] = 0
        # Last: another thread may read meanwhile, and what it has is not to be written to any more.
        self._copy = copy

    def read(self) -> memoryview:
        """A copy of what was written, the caller's own: the room is for something else next."""
        copy, self._copy = self._copy, None
        if copy is None:
            copy = np.empty(self.nbytes, np.uint8)
        os.preadv(self._memory.fd, [copy.data], self._offset)
        return copy.data

    def close(self) -> None:
        """Let go of it. Whoever may still be writing writes to nobody's memory then."""
        self._memory.close()


class OutputRooms:
    """Rooms that are used again: new pages take longer than what is written to them. Thread-safe.

    Only a room to which nobody can write any more is given back; any other is closed.
    """

    def __init__(self) -> None:
        self._idle: deque[OutputRoom] = deque()
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> OutputRoom | None:
        """Room for so many bytes; None where there is none, or where it is not worth it."""
        if not shared_memory.host_id() or not _SMALLEST_BYTES <= nbytes <= LARGEST_BYTES:
            return None
        with self._lock:
            for room in self._idle:
                if room.nbytes == nbytes:
                    self._idle.remove(room)
                    return room
        try:
            return OutputRoom(nbytes)
        except OSError as error:
            # Such as a limit on memory: what is sent needs less of it at a time.
            log.warning("there is no room for %d bytes: %s", nbytes, error)
            return None

    def give_back(self, room: OutputRoom) -> None:
        """It was read, and who wrote to it is done."""
        with self._lock:
            self._idle.append(room)
            oldest = self._idle.popleft() if len(self._idle) > _MOST_IDLE else None
        if oldest is not None:
            oldest.close()


def write_output(memory: tensor_pb2.CallMemory, data: bytes | memoryview) -> bool:
    """Write a whole tensor to the room that another process names; False: it cannot be done.

    More than a room may have is not written: it would hold up an event loop.
    """
    if len(data) > LARGEST_BYTES:
        return False
    shared = memory.tensors
    try:
        place = memory.output, len(data)
        shared_memory.write(shared.pid, shared.fd, shared.token, place, data)
    except OSError as error:
        log.warning("a result cannot be written to process %d: %s", shared.pid, error)
        return False
    return True
