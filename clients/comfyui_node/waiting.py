"""Waiting for a cluster while ComfyUI's Cancel button works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.05
"""How late a press of Cancel is noticed."""


class _End(Generic[T]):
    """How the work of a thread ended."""

    def __init__(self, value: T | None = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error


def wait_for(work: Callable[[], T], *, check: Callable[[], None], abandon: Callable[[], None]) -> T:
    """The result of `work`, which runs in a thread; raises its error.

    `check` is called at every poll; when it raises, `abandon` is called, which should end the
    work, and the exception goes on.
    """

    def once() -> Iterator[T]:
        yield work()

    (value,) = watch(once(), check=check, abandon=abandon)
    return value


def watch(
    events: Iterable[T], *, check: Callable[[], None], abandon: Callable[[], None]
) -> Iterator[T]:
    """The events of an iterable that blocks, read in a thread; otherwise as `wait_for`."""
    arrived: queue.SimpleQueue[T | _End[T]] = queue.SimpleQueue()

    def read() -> None:
        end: _End[T] = _End()
        try:
            for event in events:
                arrived.put(event)
        except BaseException as error:
            end.error = error
        arrived.put(end)

    threading.Thread(target=read, name="ditmesh-wait", daemon=True).start()
    finished = False
    try:
        while True:
            event = _next(arrived, check)
            if isinstance(event, _End):
                finished = True
                if event.error is not None:
                    raise event.error
                return
            yield event
    finally:
        if not finished:
            abandon()


def _next(arrived: queue.SimpleQueue[T], check: Callable[[], None]) -> T:
    while True:
        check()
        try:
            return arrived.get(timeout=POLL_S)
        except queue.Empty:
            continue
