"""Another process's `CallMemory`, mapped once for all calls of a stream."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ditmesh import shared_memory
from ditmesh.v1 import tensor_pb2

log = logging.getLogger(__name__)

# Larger memory is not kept by its owner either; as long as it is mapped here, it is there.
_KEPT_BYTES = 8 << 20


@dataclass(frozen=True)
class CallViews:
    """What one call has in memory. It is another call's once this one is answered.

    Nobody has checked where things are said to lie: a view may be shorter than what was declared.
    Its owner may write to it at any time: who does not trust it has to copy before checking.
    """

    tensors: dict[int, memoryview]
    """By index, from where each begins to the end of the memory."""
    output: memoryview
    """From where the output is to begin to the end of the memory."""


class AttachedMemory:
    """Of one stream. Mapping takes longer than what is done with the pages."""

    def __init__(self) -> None:
        self._place: tuple[int, int, bytes] | None = None
        self._mapped = memoryview(b"")

    def of(self, memory: tensor_pb2.CallMemory) -> CallViews | None:
        """What a call has there; None: it cannot be seen from here."""
        shared = memory.tensors
        place = shared.pid, shared.fd, shared.token
        mapped = self._mapped
        if place != self._place:
            self.close()
            try:
                mapped = shared_memory.attach(*place)
            except OSError as error:
                log.warning("shared memory of process %d cannot be mapped: %s", shared.pid, error)
                return None
            if len(mapped) <= _KEPT_BYTES:
                self._place, self._mapped = place, mapped
        # The token comes first, so there is never room at the very beginning.
        output = mapped[memory.output :] if memory.output else memoryview(b"")
        return CallViews({at.tensor: mapped[at.offset :] for at in shared.tensors}, output)

    def close(self) -> None:
        """Let go of what is mapped."""
        self._place, self._mapped = None, memoryview(b"")
