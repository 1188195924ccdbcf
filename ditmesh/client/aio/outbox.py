"""What an asyncio client sends on a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Generic, TypeVar

M = TypeVar("M")


class Outbox(Generic[M]):
    """The messages of one stream, as batches that are made only when there is room to send."""

    def __init__(self, *opening: M) -> None:
        self._batches: asyncio.Queue[Iterable[M] | None] = asyncio.Queue()
        self.send(opening)

    def send(self, batch: Iterable[M]) -> None:
        """Send these after all that came before."""
        self._batches.put_nowait(batch)

    def close(self) -> None:
        """End the client's side of the stream."""
        self._batches.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[M]:
        while (batch := await self._batches.get()) is not None:
            for message in batch:
                yield message
