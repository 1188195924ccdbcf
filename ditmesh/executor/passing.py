"""Tensors that this process was sent, for the other executors of its machine to read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ditmesh.memory_pool import MemoryPool
from ditmesh.shared_memory import Memory
from ditmesh.shared_tensors import places
from ditmesh.tensors import WireTensor
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)


class PassedOn:
    """What one request passes on; a context manager, to be left when the others have it."""

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = pool
        self._memory: Memory | None = None

    def place(
        self, tensors: Sequence[WireTensor], indices: Sequence[int]
    ) -> tensor_pb2.SharedTensors:
        """Write those tensors to memory, once. Where they are; empty: nowhere."""
        try:
            memory = self._pool.take(sum(tensors[index].spec.nbytes for index in indices))
            offsets = {index: memory.add(tensors[index]) for index in indices}
        except OSError as error:
            # They are sent to the others as well, then.
            log.warning("tensors cannot be passed on: %s", error)
            return tensor_pb2.SharedTensors()
        memory.publish()
        self._memory = memory
        return places(memory, offsets)

    def __enter__(self) -> PassedOn:
        return self

    def __exit__(self, *error: object) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            self._pool.give_back(memory)
