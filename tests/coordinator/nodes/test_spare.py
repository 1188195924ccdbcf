"""Streams that are open before there is a job for them."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, cast

import pytest

from coordinator.nodes import spare
from coordinator.nodes.spare import Spare
from tests.coordinator.fakes import until


class Stream:
    """A call that only knows whether it is over."""

    def __init__(self) -> None:
        self.over = False

    def done(self) -> bool:
        return self.over

    def cancel(self) -> None:
        self.over = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    monkeypatch.setattr(spare, "_SOON_S", 0.001)
    return []


def store(opened: list[Stream]) -> Spare:
    def open_stream() -> Any:
        opened.append(Stream())
        return opened[-1]

    return Spare(open_stream)


async def filled(opened: list[Stream]) -> Spare:
    made = store(opened)
    made.refill()
    await until(lambda: opened)
    return made


def test_without_one_in_store_a_stream_is_opened(opened: list[Stream]) -> None:
    """The first job does not wait for anything."""
    assert cast(Any, store(opened).take()) is opened[0]


def test_one_is_in_store_soon(opened: list[Stream]) -> None:
    """It is given once; asking for it twice opens a single one."""

    async def test() -> None:
        made = await filled(opened)
        made.refill()
        await asyncio.sleep(0.02)
        assert len(opened) == 1
        assert cast(Any, made.take()) is opened[0]
        assert cast(Any, made.take()) is opened[1]

    asyncio.run(test())


def test_one_that_has_ended_is_not_given(opened: list[Stream]) -> None:
    """The node closed it, or the connection broke."""

    async def test() -> None:
        made = await filled(opened)
        opened[0].over = True
        assert cast(Any, made.take()) is opened[1]

    asyncio.run(test())


def test_after_the_end_none_is_opened(opened: list[Stream]) -> None:
    """A preparation that ends later must not open one on a closed connection."""

    async def test() -> None:
        made = await filled(opened)
        made.close()
        made.refill()
        assert made._timer is None
        assert opened[0].over

    asyncio.run(test())


def test_a_stream_in_store_belongs_to_no_trace(opened: list[Stream]) -> None:
    """It is opened after a job, whose context it would keep until the next one."""
    seen: list[Any] = []
    owner: contextvars.ContextVar[str] = contextvars.ContextVar("owner", default="nobody")

    def open_stream() -> Any:
        seen.append(owner.get())
        return Stream()

    async def test() -> None:
        owner.set("a job")
        Spare(open_stream).refill()
        await until(lambda: seen)

    asyncio.run(test())
    assert seen == ["nobody"]


def test_another_process_gets_another_stream(opened: list[Stream]) -> None:
    """What was open, or about to be, is given up when the node is lost."""

    async def test() -> None:
        made = await filled(opened)
        made.drop()
        assert opened[0].over
        made.refill()
        made.drop()
        await asyncio.sleep(0.02)
        assert len(opened) == 1
        assert cast(Any, made.take()) is opened[1]

    asyncio.run(test())
