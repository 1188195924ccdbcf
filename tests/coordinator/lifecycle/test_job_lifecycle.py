"""The life of a job as a table: every event in every phase."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle.job import InvalidTransition, JobEffect, JobEvent, JobPhase, advance

P, E, F = JobPhase, JobEvent, JobEffect
BEFORE_RUNNING = (P.RECEIVING, P.QUEUED)


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(P, E)))
def test_every_event_in_every_phase_has_one_answer(phase: JobPhase, event: JobEvent) -> None:
    """A transition, or InvalidTransition with both names; the same each time."""
    try:
        answer = advance(phase, event)
    except InvalidTransition:
        with pytest.raises(InvalidTransition, match=f"{event.name}.*{phase.name}"):
            advance(phase, event)
        return
    assert answer == advance(phase, event)
    after, effects = answer
    # A job is reported exactly when it ends, and only once.
    assert (F.REPORT in effects) == (after.ended and not phase.ended)
    if phase.ended:
        assert answer == (phase, ())


@pytest.mark.parametrize("phase", P)
def test_a_stop_is_possible_at_any_time(phase: JobPhase) -> None:
    """A cancel or a deadline may come in any phase; it never brings a job back."""
    after, effects = advance(phase, E.STOP)
    assert after in (P.STOPPING, P.FAILED, P.SUCCEEDED)
    assert (F.WITHDRAW in effects) == (phase is P.QUEUED)
    assert (F.STOP_EXECUTOR in effects) == (phase in (P.LINED_UP, P.RUNNING))


def test_what_has_lined_up_ends_at_once() -> None:
    """Its executor leaves it out in its turn; nobody waits for the work before it."""
    phase, effects = advance(P.LINED_UP, E.STOP)
    assert phase is P.FAILED
    assert effects == (F.STOP_EXECUTOR, F.REPORT)


@pytest.mark.parametrize("phase", [p for p in P if not p.ended])
def test_a_failure_ends_whatever_has_not_ended(phase: JobPhase) -> None:
    """Any phase before the end can fail."""
    assert advance(phase, E.FAIL)[0] is P.FAILED


@pytest.mark.parametrize("event", [E.FINISH, E.LOST, E.STOPPED])
def test_who_asked_for_the_end_gets_it(event: JobEvent) -> None:
    """Even when the last step was done, or the executor died, in the meantime."""
    assert advance(P.STOPPING, event) == (P.FAILED, (F.REPORT,))


def test_a_lost_job_queues_again() -> None:
    """Its state goes on elsewhere; nobody is told of an end."""
    assert advance(P.RUNNING, E.LOST) == advance(P.LINED_UP, E.LOST) == (P.QUEUED, ())


@given(st.lists(st.sampled_from(list(E)), max_size=40))
def test_no_sequence_of_events_reports_twice_or_leaves_an_end(events: list[JobEvent]) -> None:
    """Whatever happens, in whatever order."""
    phase, reports = P.RECEIVING, 0
    for event in events:
        try:
            after, effects = advance(phase, event)
        except InvalidTransition:
            continue
        if phase.ended:
            assert after is phase
        if after is P.RUNNING:
            assert phase in (P.QUEUED, P.LINED_UP, P.RUNNING)
        reports += effects.count(F.REPORT)
        phase = after
    assert reports == phase.ended
