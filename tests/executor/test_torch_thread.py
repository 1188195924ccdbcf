"""Whether the one thread that computes has work left."""

from __future__ import annotations

import threading

import pytest

from ditmesh.executor.torch_thread import TorchThread


def test_it_is_busy_until_its_last_work_has_ended() -> None:
    """What is told when a piece of work ends knows whether another waits behind it."""
    go = threading.Event()
    busy: list[bool] = []
    with TorchThread() as thread:
        assert not thread.busy
        works = [thread.submit(go.wait, 10.0) for _ in range(2)]
        for work in works:
            work.add_done_callback(lambda _: busy.append(thread.busy))
        assert thread.busy
        go.set()
        assert all(work.result(10.0) for work in works)
    assert busy == [True, False]


def test_work_that_fails_or_is_given_up_has_ended() -> None:
    """An error, a cancelled piece, and one that comes too late count for nothing."""
    thread = TorchThread()
    go = threading.Event()
    first = thread.submit(go.wait, 10.0)
    failing = thread.submit(int, "no number")
    assert thread.submit(int).cancel()
    go.set()
    assert first.result(10.0)
    with pytest.raises(ValueError, match="no number"):
        failing.result(10.0)
    thread.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        thread.submit(int)
    assert not thread.busy
