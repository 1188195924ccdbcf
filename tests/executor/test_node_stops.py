"""What ends a run before its last step."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

from ditmesh.executor.control import StopFlag
from ditmesh.jobs import Snapshot
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import node_pb2 as pb
from tests.executor.node import Node, Stream, golden_job, until


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a run of this test has been told to stop."""
    told = threading.Event()

    class Flag(StopFlag):
        def set(self, reason: pb.StopReason) -> None:
            super().set(reason)
            told.set()

    monkeypatch.setattr("ditmesh.executor.session.StopFlag", Flag)
    return told


def value_of(snapshot: Snapshot) -> torch.Tensor:
    return to_torch(snapshot.tensors[snapshot.state.latent])


def test_a_stop_ends_the_run_within_a_step(node: Node, stopped: threading.Event) -> None:
    """With its reason; the states up to there are sent, and no result."""
    stream = Stream(node.stub)
    stream.prepare(golden_job())
    go = threading.Semaphore(2)
    node.before.append(go.acquire)
    stream.send(start=pb.StartRun())

    def stop(step: int) -> None:
        if step == 2:
            stream.send(stop=pb.StopRun(reason=pb.STOP_REASON_CANCELLED))
            assert stopped.wait(20)
            go.release(20)

    ran = stream.follow(stop)
    assert ran.done is not None
    assert ran.done.stopped == pb.STOP_REASON_CANCELLED
    assert len(ran.states) <= 3
    assert ran.result is None


def test_a_deadline_ends_the_run_by_itself(node: Node) -> None:
    """Nobody has to send anything."""
    node.before.append(lambda: time.sleep(0.05))
    ran = node.run(golden_job(), deadline_s=0.12)
    assert ran.done is not None
    assert ran.done.stopped == pb.STOP_REASON_DEADLINE
    assert len(ran.states) < 8


def test_states_that_come_too_fast_stay_here_until_they_are_wanted(
    node: Node, stopped: threading.Event
) -> None:
    """Every step is told; the state comes when the run is stopped, and goes on to the same bits."""
    limits = node.servicer._limits
    node.servicer._limits = replace(limits, state_every_s=60.0)
    go = threading.Semaphore(5)
    node.before.append(go.acquire)
    try:
        stream = Stream(node.stub)
        stream.prepare(golden_job())
        stream.send(start=pb.StartRun())
        until(lambda: go._value == 0)
        stream.send(stop=pb.StopRun(reason=pb.STOP_REASON_PREEMPTED))
        until(lambda: node.servicer._keeper.newest("job").state.step == 5)
        assert stopped.wait(20)
        go.release(20)
        part = stream.follow()
        stream.end()
    finally:
        node.servicer._limits = limits
    whole = node.run(golden_job())
    told = [snapshot.step for snapshot in part.states]
    assert told == [*range(1, told[-1] + 1), told[-1]]
    assert [len(snapshot.tensors) for snapshot in part.states] == [0] * told[-1] + [1]
    assert torch.equal(value_of(part.states[-1]), value_of(whole.states[told[-1] - 1]))


@pytest.mark.parametrize("how", ["closed", "stopped", "cancelled"])
def test_a_run_that_is_never_started_computes_nothing(node: Node, how: str) -> None:
    """Prepared, then given up in any way: the next run has the executor."""
    passes: list[int] = []
    node.before.append(lambda: passes.append(1))
    stream = Stream(node.stub)
    stream.prepare(golden_job())
    if how == "stopped":
        stream.send(stop=pb.StopRun(reason=pb.STOP_REASON_CANCELLED))
    if how == "cancelled":
        stream.call.cancel()
    else:
        stream.end()
        assert list(stream.call) == []
    assert passes == []
    node.before.clear()
    assert node.run(golden_job()).result is not None


def test_a_stream_that_breaks_ends_the_run_within_a_step(
    node: Node, stopped: threading.Event
) -> None:
    """It does not go on unseen."""
    passes: list[int] = []
    go = threading.Semaphore(2)
    node.before += [lambda: passes.append(1), go.acquire]
    stream = Stream(node.stub)
    stream.prepare(golden_job())
    stream.send(start=pb.StartRun())
    until(lambda: len(passes) == 3)
    stream.call.cancel()
    assert stopped.wait(20)
    go.release(20)
    node.servicer._torch_thread.submit(lambda: None).result(timeout=20)
    assert len(passes) <= 4
