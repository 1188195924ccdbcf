"""The coordinator's memory for what is new in each call, mapped once for all calls of a stream."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ditmesh import shared_memory
from ditmesh.v1 import node_pb2

log = logging.getLogger(__name__)

# Larger memory is not kept by the coordinator either; as long as it is mapped here, it is there.
_KEPT_BYTES = 8 << 20


@dataclass(frozen=True)
class CallViews:
    """What one call has in memory. It is another call's once this one is answered."""

    tensors: dict[int, memoryview]
    """By index, where each begins; it is as long as was declared."""
    output: memoryview
    """Where the output is to begin."""


class AttachedMemory:
    """Of one stream. Mapping takes longer than what is done with the pages."""

    def __init__(self) -> None:
        self._place: tuple[int, int, bytes] | None = None
        self._mapped = memoryview(b"")

    def of(self, request: node_pb2.PredictStepRequest) -> CallViews | None:
        """What a call has brought along; None: nothing, or nothing that can be seen from here."""
        if not request.HasField("memory"):
            return None
        shared = request.memory.tensors
        place = shared.pid, shared.fd, shared.token
        mapped = self._mapped
        if place != self._place:
            self._place, self._mapped = None, memoryview(b"")
            try:
                mapped = shared_memory.attach(*place)
            except OSError as error:
                log.warning("shared memory of process %d cannot be mapped: %s", shared.pid, error)
                return None
            if len(mapped) <= _KEPT_BYTES:
                self._place, self._mapped = place, mapped
        views = {at.tensor: mapped[at.offset :] for at in shared.tensors}
        return CallViews(views, mapped[request.memory.output :])
