"""Time limits of a process that may itself be stopped for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LOOKS = 5


@asynccontextmanager
async def timeout(seconds: float | None) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but time in which this loop did not run hardly counts.

    A machine that was paused, or too busy to run this process, finds its clock ahead and what the
    others said meanwhile unread; they are not late. Each stop counts for a fifth of `seconds` at
    most.
    """
    loop = asyncio.get_running_loop()
    handle: asyncio.TimerHandle | None = None
    looks = 0

    def look() -> None:
        nonlocal handle, looks
        looks += 1
        if looks == _LOOKS:
            limit.reschedule(loop.time())
        else:
            arm()

    def arm() -> None:
        nonlocal handle
        if seconds is not None:
            handle = loop.call_later(seconds / _LOOKS, look)

    async with asyncio.timeout(None) as limit:
        arm()
        try:
            yield
        finally:
            if handle is not None:
                handle.cancel()
