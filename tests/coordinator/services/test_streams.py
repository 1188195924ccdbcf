"""Streams to clients that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest import mock

import pytest

from coordinator.services.streams import sending
from tests.coordinator.fakes import run


async def _numbers(ended: list[bool]) -> AsyncIterator[int]:
    try:
        for number in range(3):
            yield number
    finally:
        ended.append(True)


def test_a_client_that_reads_gets_all() -> None:
    """However slowly: the time counts from message to message."""

    async def test() -> None:
        got = []
        loop = asyncio.get_running_loop()
        with mock.patch.object(loop, "time", return_value=loop.time()) as clock:
            async for number in sending(_numbers([]), 1.0):
                got.append(number)
                clock.return_value += 0.9
                await asyncio.sleep(0)
        assert got == [0, 1, 2]

    run(test())


def test_a_client_that_stopped_to_read_loses_its_stream() -> None:
    """The request ends, and with it what it held."""
    ended: list[bool] = []

    async def request() -> None:
        async for _ in sending(_numbers(ended), 0.05):
            await asyncio.Event().wait()

    async def test() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(request())

    run(test())
    assert ended == [True]
