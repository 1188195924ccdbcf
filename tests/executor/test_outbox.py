"""Which finished steps an executor tells of, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.executor.loop import Outcome, StepDone
from ditmesh.executor.reporting import Outbox
from ditmesh.models.registry import family
from ditmesh.sampling import State
from tests.executor.node import until

LATENT = torch.zeros(1, 1, 4)
LAYOUT = family("flux").layout((1, 1, 2, 2))


def done(step: int) -> StepDone:
    return StepDone(State(step, LATENT), 0.5, 0.1, None, LAYOUT)


def rest(outbox: Outbox) -> list[int]:
    """End the run, and read what is told until then."""
    outcome: Future[Outcome] = Future()
    outbox.end(outcome)
    told = []
    while isinstance(item := outbox.get(), StepDone):
        told.append(item.state.step)
    assert item is outcome
    return told


@contextmanager
def reader(outbox: Outbox) -> Iterator[list[int]]:
    """A thread that reads to the end, and what it has read."""
    told: list[int] = []

    def read() -> None:
        while isinstance(item := outbox.get(), StepDone):
            told.append(item.state.step)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield told
    finally:
        outbox.end(Future())
        thread.join()


def test_the_reader_finds_a_step_by_itself() -> None:
    """Nobody wakes it: it looks again and again, and finds what was put while it waited."""
    outbox = Outbox(every_s=0.005)
    with reader(outbox) as told:
        outbox.put(done(1))
        until(lambda: told)
        assert told == [1]


def test_the_end_is_told_at_once() -> None:
    """A reader that waits for the next look is woken."""
    outbox = Outbox(every_s=3600.0)
    with reader(outbox) as told:
        outbox.put(done(1))
    assert told == [1]


def test_what_is_urgent_is_told_at_once() -> None:
    """It does not wait for the next look either."""
    outbox = Outbox(every_s=3600.0, is_urgent=lambda item: item.state.step == 2)
    with reader(outbox) as told:
        outbox.put(done(2))
        until(lambda: told)
        assert told == [2]


def test_a_rank_that_tells_nothing_sleeps_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers share an interpreter with the torch thread too, and have nothing to look for."""
    outbox = Outbox(every_s=None)
    waits: list[float | None] = []
    wait = outbox._woken.wait
    monkeypatch.setattr(outbox._woken, "wait", lambda s=None: waits.append(s) or wait(s))
    with reader(outbox):
        until(lambda: waits)
    assert waits == [None]


def test_of_steps_that_nobody_has_read_the_newest_is_told() -> None:
    """They came too fast for anybody to follow; the last is told in any case."""
    outbox = Outbox(every_s=0.01)
    for step in range(1, 11):
        outbox.put(done(step))
    item = outbox.get()
    assert isinstance(item, StepDone)
    assert item.state.step == 10
    outbox.put(done(11))
    outbox.put(done(12))
    assert rest(outbox) == [12]


def test_all_are_told_where_none_is_too_fast() -> None:
    """Without a least time between them, every step is told."""
    outbox = Outbox()
    for step in range(1, 5):
        outbox.put(done(step))
    assert rest(outbox) == [1, 2, 3, 4]


def test_steps_with_a_preview_are_all_told() -> None:
    """However fast they come."""
    outbox = Outbox(every_s=10.0, must_tell=lambda item: item.state.step % 3 == 0)
    for step in range(1, 9):
        outbox.put(done(step))
    assert rest(outbox) == [3, 6, 8]


@given(st.integers(0, 40), st.data())
def test_steps_come_in_order_and_the_last_always(steps: int, data: Any) -> None:
    """Whoever reads meanwhile: ascending, and the newest at the end."""
    outbox = Outbox(every_s=0.01)
    told = []
    for step in range(1, steps + 1):
        outbox.put(done(step))
        if data.draw(st.booleans()):
            item = outbox.get()
            assert isinstance(item, StepDone)
            told.append(item.state.step)
    told += rest(outbox)
    assert told == sorted(set(told))
    assert told[-1:] == ([steps] if steps else [])
