"""Turns on an executor: one at work, one leaving, and none lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle.turns import NotItsTurn, Turn, Turns


def test_work_that_hands_on_makes_room_for_one() -> None:
    """What comes after it has lined up; the executor is idle once both have given it back."""
    turns = Turns()
    first = turns.take()
    assert turns.hand_on(first)
    assert turns.free
    second = turns.take()
    assert (first.lined_up, second.lined_up) == (False, True)
    turns.give_back(first)
    assert not turns.free
    turns.give_back(second)
    assert turns.free
    assert turns.idle
    assert not turns.take().lined_up


@given(st.lists(st.tuples(st.sampled_from(["take", "hand_on", "give_back"]), st.integers(0, 9))))
def test_whatever_happens_one_is_at_work_and_one_leaves(events: list[tuple[str, int]]) -> None:
    """In any order of events on any turn, those long over too: never more than two are there, the
    one at work took it last, and what is not allowed changes nothing.
    """
    turns = Turns()
    taken: list[Turn] = []
    there: list[Turn] = []
    for event, number in events:
        turn = taken[number % len(taken)] if taken else None
        if event == "take":
            if turns.free:
                taken.append(turns.take())
                assert taken[-1].lined_up == bool(there)
                there.append(taken[-1])
            else:
                with pytest.raises(NotItsTurn):
                    turns.take()
        elif turn is not None and event == "hand_on":
            allowed = there == [turn] and not turns.free
            assert turns.hand_on(turn) == allowed
            assert turns.free or not allowed
        elif turn is not None and turn in there:
            turns.give_back(turn)
            there.remove(turn)
        elif turn is not None:
            with pytest.raises(NotItsTurn):
                turns.give_back(turn)
        assert len(there) <= 2
        assert turns.there == len(there)
        assert turns.idle == (not there)
        assert turns.free or there
        if len(there) == 2:
            assert not turns.free
