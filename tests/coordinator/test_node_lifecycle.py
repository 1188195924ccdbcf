"""The life of a node: what the group learns, from any sequence of reports and losses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle.node import Change, Lost, NodePhase, NodeView, Report, advance

reports = st.builds(
    Report,
    incarnation=st.sampled_from(["one", "two"]),
    epoch=st.integers(0, 3),
    draining=st.booleans(),
)
events = st.lists(reports | st.just(Lost("its stream broke")), max_size=30)


@given(events)
def test_the_group_hears_up_and_down_in_turn(events: list[Report | Lost]) -> None:
    """It can replay them: a node is up when the last change was UP, and never twice in a row."""
    view, up = NodeView(), False
    for event in events:
        view, changes = advance(view, event)
        for change in changes:
            assert up == (change is Change.DOWN)
            up = change is Change.UP
        assert up == (view.phase is not NodePhase.DOWN)


@given(events)
def test_the_view_says_what_the_node_said_last(events: list[Report | Lost]) -> None:
    """Phase, epoch and incarnation; a problem exactly while it is down."""
    view = NodeView()
    for event in events:
        view, _ = advance(view, event)
        if isinstance(event, Report) and not event.draining:
            assert (view.incarnation, view.epoch) == (event.incarnation, event.epoch)
            assert view.phase is (NodePhase.JOINED if event.epoch else NodePhase.IDLE)
        else:
            assert view.phase is NodePhase.DOWN
        assert bool(view.problem) == (view.phase is NodePhase.DOWN)


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


def test_a_node_that_shuts_down_is_gone_before_its_stream_breaks() -> None:
    """And its end afterwards is no second loss."""
    view, _ = advance(NodeView(), Report("one", 3))
    view, changes = advance(view, Report("one", 3, draining=True))
    assert changes == (Change.DOWN,)
    assert advance(view, Lost("closed"))[1] == ()
