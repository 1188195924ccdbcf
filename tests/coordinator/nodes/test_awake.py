"""Limits on waiting, in a process that is stopped meanwhile."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from coordinator.nodes import awake
from tests.coordinator.fakes import run


def test_a_limit_passes() -> None:
    """As asyncio's own does, and not before its time."""

    async def wait() -> float:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with awake.Timeout(0.1):
                await asyncio.Event().wait()
        return time.monotonic() - started

    assert run(wait()) >= 0.1


@pytest.mark.parametrize("limit_s", [0.5, None])
def test_what_is_there_in_time_is_had(limit_s: float | None) -> None:
    """And nothing is left of the limit."""

    async def wait() -> int:
        async with awake.Timeout(limit_s):
            return await asyncio.sleep(0.01, 7)

    assert run(wait()) == 7


def test_a_stop_of_this_process_is_nobodys_silence() -> None:
    """What came meanwhile lies there unread when the clock is looked at."""

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        async with awake.Timeout(0.2):
            loop.call_soon(time.sleep, 0.4)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            loop.call_later(0.01, came.set)
            await came.wait()

    run(wait())


def test_others_cancel_as_ever() -> None:
    """A cancellation from outside is no timeout."""

    async def wait() -> None:
        async with awake.Timeout(5.0):
            await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancel())


@pytest.mark.parametrize("expires", [True, False])
def test_nothing_is_left_for_the_collector(expires: bool) -> None:
    """A job's tensors go with its task."""

    class Tensors:
        pass

    async def work() -> Tensors:
        for _ in range(3):
            try:
                async with awake.Timeout(0.02):
                    await asyncio.sleep(0.05 if expires else 0.0)
            except TimeoutError:
                assert expires
        return Tensors()

    async def hold() -> weakref.ref[Tensors]:
        return weakref.ref(await asyncio.create_task(work()))

    gc.disable()
    try:
        assert run(hold())() is None
    finally:
        gc.enable()
