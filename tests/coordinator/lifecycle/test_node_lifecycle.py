"""The life of a node: what the group learns, from any sequence of reports and losses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle.node import (
    Change,
    Lost,
    NodePhase,
    NodeView,
    RefusedLoading,
    Report,
    advance,
)

reports = st.builds(
    Report,
    incarnation=st.sampled_from(["one", "two"]),
    epoch=st.integers(0, 3),
    draining=st.booleans(),
    loading=st.booleans(),
)
events = st.lists(
    reports | st.sampled_from([Lost("its stream broke"), RefusedLoading()]), max_size=30
)


@given(events)
def test_the_group_can_replay_what_it_hears(events: list[Report | RefusedLoading | Lost]) -> None:
    """Its picture of a node, made of the changes alone, is always the view's; no news is told
    twice.
    """
    view = NodeView()
    heard, loads = Change.DOWN, Change.LOADED
    for event in events:
        view, changes = advance(view, event)
        for change in changes:
            assert change not in (heard, loads)
            if change in (Change.LOADING, Change.LOADED):
                loads = change
            else:
                heard = change
            if change is Change.DOWN:
                loads = Change.LOADED
        assert (loads is Change.LOADING) == view.loading
        usable = view.phase in (NodePhase.IDLE, NodePhase.JOINED)
        assert (heard is Change.UP) == usable
        assert (heard is Change.DRAINING) == (view.phase is NodePhase.DRAINING)


@given(events)
def test_the_view_says_what_the_node_said_last(
    events: list[Report | RefusedLoading | Lost],
) -> None:
    """Phase, epoch and incarnation; a problem exactly while it can join nothing."""
    view = NodeView()
    for event in events:
        view, _ = advance(view, event)
        if isinstance(event, Lost):
            assert view.phase is NodePhase.DOWN
        elif isinstance(event, Report):
            assert (view.incarnation, view.epoch) == (event.incarnation, event.epoch)
            assert view.loading == event.loading
            joined = NodePhase.JOINED if event.epoch else NodePhase.IDLE
            assert view.phase is (NodePhase.DRAINING if event.draining else joined)
        usable = view.phase in (NodePhase.IDLE, NodePhase.JOINED)
        assert bool(view.problem) != usable


def test_another_process_at_the_same_address_is_a_death_and_a_birth() -> None:
    """Even when no stream broke in between: its place in the group is gone."""
    view, _ = advance(NodeView(), Report("one", 4))
    view, changes = advance(view, Report("two", 0))
    assert changes == (Change.DOWN, Change.UP)
    assert view.phase is NodePhase.IDLE


def test_the_same_report_again_changes_nothing() -> None:
    """Nodes repeat themselves every second."""
    view, changes = advance(NodeView(), Report("one", 0))
    assert changes == (Change.UP,)
    assert advance(view, Report("one", 0)) == (view, ())


def test_joining_and_leaving_are_no_news_for_the_group() -> None:
    """It asked for them itself."""
    view, _ = advance(NodeView(), Report("one", 0))
    view, changes = advance(view, Report("one", 5))
    assert (view.phase, changes) == (NodePhase.JOINED, ())
    view, changes = advance(view, Report("one", 0))
    assert (view.phase, changes) == (NodePhase.IDLE, ())


def test_a_node_that_loads_says_so_before_it_can_join() -> None:
    """And what it said when it refused to join holds until its next report."""
    view, changes = advance(NodeView(), Report("one", 0, loading=True))
    assert changes == (Change.LOADING, Change.UP)
    view, changes = advance(view, Report("one", 0))
    assert changes == (Change.LOADED,)
    view, changes = advance(view, RefusedLoading())
    assert changes == (Change.LOADING,)
    assert advance(view, RefusedLoading()) == (view, ())
    assert advance(view, Report("one", 0))[1] == (Change.LOADED,)
    assert advance(view, Report("two", 0))[1] == (Change.DOWN, Change.UP)


def test_a_node_that_shuts_down_says_so_once_and_then_goes() -> None:
    """Draining is told when it begins; the end is a loss like any other."""
    view, _ = advance(NodeView(), Report("one", 3))
    view, changes = advance(view, Report("one", 3, draining=True))
    assert changes == (Change.DRAINING,)
    view, changes = advance(view, Report("one", 3, draining=True))
    assert changes == ()
    assert advance(view, Lost("closed"))[1] == (Change.DOWN,)
