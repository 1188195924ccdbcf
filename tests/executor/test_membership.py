"""Orders to join and leave that come on several threads, late ones among them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmesh.errors import GroupLost, Loading, StaleEpoch
from ditmesh.executor import membership
from ditmesh.executor.engine import Engine
from ditmesh.executor.membership import Membership
from ditmesh.executor.torch_thread import TorchThread
from ditmesh.v1 import node_pb2 as pb
from tests.executor.node import until

_ENOUGH_S = 20


class ScriptedEngine:
    """Joins at once unless `others` are still to come."""

    def __init__(self) -> None:
        self.epoch = 0
        self.story: list[str] = []
        self.others = threading.Event()
        self.others.set()
        self.on_abort: Callable[[], Any] = lambda: None
        self.cache = SimpleNamespace(loading="")

    def join(self, request: pb.JoinGroupRequest, aborted: threading.Event) -> None:
        assert not self.epoch, "it is in a group"
        while not self.others.wait(0.01):
            if aborted.is_set():
                break
        if aborted.is_set():
            self.story.append(f"aborted {request.epoch}")
            raise GroupLost("nobody wants it")
        self.epoch = request.epoch
        self.story.append(f"joined {request.epoch}")

    def abort(self) -> None:
        self.on_abort()

    def leave(self) -> None:
        if self.epoch:
            self.story.append(f"left {self.epoch}")
        self.epoch = 0


class Process:
    """A membership with all that it needs, and threads on which orders come."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine()
        self.torch_thread = TorchThread()
        self.gave_up: list[str] = []
        self.left_late = threading.Event()
        self.membership = Membership(
            cast(Engine, self.engine), self.torch_thread, self.gave_up.append, self.left_late.set
        )
        self.threads = ThreadPoolExecutor(16)

    def join(self, epoch: int) -> Future[None]:
        """An order on a thread of its own."""
        return self.threads.submit(self.membership.join, pb.JoinGroupRequest(epoch=epoch))

    def leave(self, epoch: int) -> Future[None]:
        """An order on a thread of its own."""
        return self.threads.submit(self.membership.leave, epoch)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Its torch thread loads weights, until the block ends."""
        begun, may_end = threading.Event(), threading.Event()

        def load() -> None:
            self.engine.cache.loading = "flux"
            begun.set()
            assert may_end.wait(_ENOUGH_S)
            self.engine.cache.loading = ""

        self.torch_thread.submit(load)
        assert begun.wait(_ENOUGH_S)
        try:
            yield
        finally:
            may_end.set()

    def close(self) -> None:
        """End its threads."""
        self.threads.shutdown()
        self.torch_thread.shutdown()


@pytest.fixture
def process() -> Iterator[Process]:
    """One that is in epoch 1."""
    made = Process()
    made.join(1).result(_ENOUGH_S)
    yield made
    made.close()


def test_a_late_order_to_leave_does_not_cost_the_next_group(process: Process) -> None:
    """The coordinator has the survivors leave, and join anew a moment later: the first order, held
    up after it had looked, used to leave the group that the second had joined.
    """
    looked, go_on = threading.Event(), threading.Event()

    def held_up() -> None:
        looked.set()
        assert go_on.wait(_ENOUGH_S)

    process.engine.on_abort = held_up
    leaving = process.leave(1)
    assert looked.wait(_ENOUGH_S)
    joining = process.join(2)
    time.sleep(0.05)
    go_on.set()
    leaving.result(_ENOUGH_S)
    joining.result(_ENOUGH_S)
    assert process.engine.story == ["joined 1", "left 1", "joined 2"]


def test_who_joins_leaves_first(process: Process) -> None:
    """And what is old by then does nothing."""
    process.join(3).result(_ENOUGH_S)
    process.leave(1).result(_ENOUGH_S)
    with pytest.raises(StaleEpoch):
        process.join(2).result(_ENOUGH_S)
    assert process.engine.story == ["joined 1", "left 1", "joined 3"]
    assert process.membership.newest_epoch == 3


@pytest.mark.parametrize("begun", [True, False])
def test_a_join_is_called_off(process: Process, begun: bool) -> None:
    """One that waits for other ranks, and one that the torch thread has not come to."""
    process.leave(1).result(_ENOUGH_S)
    process.engine.others.clear()
    resting = threading.Event()
    if not begun:
        process.torch_thread.submit(resting.wait, _ENOUGH_S)
    joining = process.join(2)
    until(lambda: process.membership.newest_epoch == 2)
    leaving = process.leave(2)
    resting.set()
    with pytest.raises(GroupLost):
        joining.result(_ENOUGH_S)
    leaving.result(_ENOUGH_S)
    assert process.engine.story == ["joined 1", "left 1", "aborted 2"]
    assert not process.gave_up


def test_a_thread_that_stays_stuck_is_the_end_of_the_process(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why."""
    monkeypatch.setattr(membership, "_FREE_S", 0.05)
    stuck = threading.Event()
    process.torch_thread.submit(stuck.wait, _ENOUGH_S)
    process.leave(1).result(_ENOUGH_S)
    assert ["stuck" in why for why in process.gave_up] == [True]
    stuck.set()


def test_a_thread_that_loads_weights_is_not_stuck(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is left when the load is through, however long that takes. Orders to join are
    refused until then, so that nobody waits for this one; the next one is obeyed.
    """
    monkeypatch.setattr(membership, "_FREE_S", 0.05)
    aborted: list[bool] = []
    process.engine.on_abort = lambda: aborted.append(True)
    with process.loading():
        process.leave(1).result(_ENOUGH_S)
        with pytest.raises(Loading, match="flux"):
            process.join(2).result(_ENOUGH_S)
        assert aborted
        assert process.engine.story == ["joined 1"]
        assert not process.left_late.is_set()
    assert process.left_late.wait(_ENOUGH_S)
    process.join(3).result(_ENOUGH_S)
    assert process.engine.story == ["joined 1", "left 1", "joined 3"]
    assert not process.gave_up


def test_a_load_that_begins_meanwhile_is_not_being_stuck(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was ordered before the group was lost, and the torch thread had other work first."""
    monkeypatch.setattr(membership, "_FREE_S", 0.05)
    looks = itertools.chain([""], itertools.repeat("flux"))
    late = type("Cache", (), {"loading": property(lambda self: next(looks))})
    monkeypatch.setattr(process.engine, "cache", late())
    loaded = threading.Event()
    process.torch_thread.submit(loaded.wait, _ENOUGH_S)
    process.leave(1).result(_ENOUGH_S)
    assert not process.gave_up
    loaded.set()


def test_a_process_that_ends_waits_for_no_weights(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be killed meanwhile, without its last words."""
    monkeypatch.setattr(membership, "_FREE_S", 0.05)
    with process.loading():
        process.membership.close()
        assert process.gave_up


def test_who_is_in_no_group_has_nothing_to_free(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A join that failed is over: weights that are loaded afterwards are nobody's hindrance."""
    process.leave(1).result(_ENOUGH_S)
    process.engine.others.clear()
    joining = process.join(2)
    until(lambda: process.membership.newest_epoch == 2)
    process.membership._aborted.set()
    with pytest.raises(GroupLost):
        joining.result(_ENOUGH_S)
    monkeypatch.setattr(membership, "_FREE_S", 0.05)
    loaded = threading.Event()
    process.torch_thread.submit(loaded.wait, _ENOUGH_S)
    process.leave(2).result(_ENOUGH_S)
    process.membership.close()
    assert not process.gave_up
    loaded.set()


_ORDERS = st.lists(
    st.tuples(st.sampled_from(["join", "leave"]), st.integers(1, 6)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(_ORDERS)
def test_orders_in_any_number_at_once(orders: list[tuple[str, int]]) -> None:
    """A group is left by the order to leave it, or for a newer one, and by nothing else; what was
    ordered last of all is where the process ends.
    """
    process = Process()
    try:
        futures = [getattr(process, order)(epoch) for order, epoch in orders]
        for future in futures:
            error = future.exception(_ENOUGH_S)
            assert error is None or isinstance(error, (StaleEpoch, GroupLost))
        newest = max((epoch for order, epoch in orders if order == "join"), default=0)
        assert process.membership.newest_epoch == newest
        story = process.engine.story
        joined = [int(line.split()[1]) for line in story if line.startswith("joined")]
        assert joined == sorted(set(joined))
        if ("leave", newest) not in orders:
            assert process.engine.epoch == newest
        assert process.engine.epoch in (0, newest)
    finally:
        process.close()
