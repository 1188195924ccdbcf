"""What a blocking client sends on a stream: filled by one thread, sent by gRPC's."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

M = TypeVar("M")


class Outbox(Generic[M]):
    """The messages of one stream, as batches that are made only when there is room to send."""

    def __init__(self, *opening: M) -> None:
        self._batches: queue.SimpleQueue[Iterable[M] | None] = queue.SimpleQueue()
        self.send(opening)

    def send(self, batch: Iterable[M]) -> None:
        """Send these after all that came before."""
        self._batches.put(batch)

    def close(self) -> None:
        """End the client's side of the stream."""
        self._batches.put(None)

    def __iter__(self) -> Iterator[M]:
        while (batch := self._batches.get()) is not None:
            yield from batch
