"""Which finished steps an executor tells of, and when."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.executor.loop import Outcome, StepDone
from ditmesh.executor.reporting import Outbox
from ditmesh.sampling import State

LATENT = torch.zeros(1, 1, 2, 2)


class Clock:
    """Time as a test tells it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("ditmesh.executor.reporting.time", made)
    return made


def done(step: int) -> StepDone:
    return StepDone(State(step, LATENT), 0.5, 0.1, None)


def rest(outbox: Outbox) -> list[int]:
    """End the run, and read what is told until then."""
    outcome: Future[Outcome] = Future()
    outbox.end(outcome)
    told = []
    while isinstance(item := outbox.get(), StepDone):
        told.append(item.state.step)
    assert item is outcome
    return told


def waiting(outbox: Outbox) -> list[int]:
    return [item.state.step for item in outbox._states]


def test_a_step_is_handed_over_when_the_next_is_in_the_model(clock: Clock) -> None:
    """Not before: the torch thread has the interpreter to itself between two steps."""
    outbox = Outbox(every_s=0.01)
    outbox.hand_over()
    outbox.put(done(1))
    assert waiting(outbox) == []
    outbox.hand_over()
    assert waiting(outbox) == [1]


def test_of_fast_steps_the_newest_is_told(clock: Clock) -> None:
    """A hundred a second are enough; the last is told in any case."""
    outbox = Outbox(every_s=0.01)
    for step in range(1, 11):
        outbox.put(done(step))
        clock.now += 0.004
        outbox.hand_over()
    assert waiting(outbox) == [1, 4, 7, 10]
    outbox.put(done(11))
    outbox.put(done(12))
    assert rest(outbox) == [1, 4, 7, 10, 12]


def test_steps_with_a_preview_are_all_told(clock: Clock) -> None:
    """However fast they come."""
    outbox = Outbox(every_s=10.0, must_tell=lambda item: item.state.step % 3 == 0)
    for step in range(1, 9):
        outbox.put(done(step))
        outbox.hand_over()
    assert rest(outbox) == [1, 3, 6, 8]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 0.03)), max_size=40), st.data())
def test_steps_come_in_order_and_the_last_always(steps: list[Any], data: Any) -> None:
    """Whatever the times and whoever reads meanwhile: ascending, and the newest at the end."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditmesh.executor.reporting.time", clock)
        outbox = Outbox(every_s=0.01)
        told = []
        for step, (hands_over, pause) in enumerate(steps, 1):
            outbox.put(done(step))
            clock.now += pause
            if hands_over:
                outbox.hand_over()
            while outbox._states and data.draw(st.booleans()):
                item = outbox.get()
                assert isinstance(item, StepDone)
                told.append(item.state.step)
        told += rest(outbox)
    assert told == sorted(set(told))
    assert told[-1:] == ([len(steps)] if steps else [])
