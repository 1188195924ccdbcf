"""Waiting: events come through, errors too, and Cancel ends the work."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clients.comfyui_node.waiting import wait_for, watch


class Cancelled(Exception):
    """What ComfyUI raises when Cancel is pressed."""


def never() -> None:
    """Nobody presses Cancel."""


def test_events_come_in_order() -> None:
    """What the work yields, the watcher gets, and work that ends by itself is not abandoned."""
    abandoned: list[bool] = []
    seen = list(watch([1, 2, 3], check=never, abandon=lambda: abandoned.append(True)))
    assert seen == [1, 2, 3]
    assert abandoned == []


def test_an_error_of_the_work_is_raised() -> None:
    """After the events before it; the work has ended, so nothing is abandoned."""

    def work() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    seen: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(watch(work(), check=never, abandon=pytest.fail))
    with pytest.raises(ValueError, match="broken"):
        wait_for(lambda: list(work()), check=never, abandon=pytest.fail)


def test_cancel_abandons_work_that_blocks() -> None:
    """The check is made while the work is silent, and its exception goes on to the caller."""
    released = threading.Event()

    def check() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        wait_for(lambda: released.wait(60), check=check, abandon=released.set)
    assert released.is_set()


def test_an_error_of_the_watcher_abandons_the_work() -> None:
    """ComfyUI's progress bar raises when Cancel is pressed between two steps."""
    released = threading.Event()

    def work() -> Iterator[int]:
        yield 1
        released.wait(60)

    def draw() -> None:
        for _ in watch(work(), check=never, abandon=released.set):
            raise Cancelled

    with pytest.raises(Cancelled):
        draw()
    assert released.is_set()


def test_the_result_of_the_work_is_returned() -> None:
    """Also when it is None."""
    assert wait_for(lambda: 5, check=never, abandon=pytest.fail) == 5
    assert wait_for(lambda: None, check=never, abandon=pytest.fail) is None
