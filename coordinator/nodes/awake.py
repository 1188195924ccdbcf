"""Time limits of a process that may itself be stopped for a while."""

from __future__ import annotations

import asyncio
from types import TracebackType

_LOOKS = 5


class Timeout:
    """As `asyncio.timeout`, but time in which this loop did not run hardly counts.

    A machine that was paused, or too busy to run this process, finds its clock ahead and what the
    others said meanwhile unread; they are not late. Each stop counts for a fifth of the limit at
    most.
    """

    def __init__(self, seconds: float | None) -> None:
        """None: no limit."""
        self._limit = asyncio.timeout(None)
        self._seconds = seconds
        self._looks = 0
        self._handle: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._wait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        await self._limit.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        if self._seconds is not None:
            pause = self._seconds / _LOOKS
            self._handle = asyncio.get_running_loop().call_later(pause, self._look)

    def _look(self) -> None:
        # A handle that has run would keep this object, and the task within, for the collector.
        self._handle = None
        self._looks += 1
        if self._looks == _LOOKS:
            self._limit.reschedule(asyncio.get_running_loop().time())
        else:
            self._wait()
