"""When a client tries again, and when it does not."""

from __future__ import annotations

import grpc
import pytest

from ditmesh.client.retry import Attempts, RetryPolicy
from ditmesh.errors import DitmeshError, Draining, InvalidRequest, Overloaded, Unavailable
from ditmesh.rpc_status import trailing_metadata


class Failure(grpc.RpcError):
    """A failure as gRPC reports it: of the connection, or what the server said."""

    def __init__(self, said: DitmeshError | None = None) -> None:
        self._said = said

    def code(self) -> grpc.StatusCode:
        """As gRPC's."""
        return self._said.code if self._said else grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """As gRPC's."""
        return "Socket closed"

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """As gRPC's."""
        return trailing_metadata(self._said) if self._said else ()


class Clock:
    """Seconds that pass only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_and_begin_anew() -> None:
    """Pauses double up to 1 s, and are short again once the server was heard."""
    attempts = Attempts(RetryPolicy(), Clock())
    attempts.heard()
    pauses = [attempts.pause_after(Failure(), taken=True) for _ in range(7)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    attempts.heard()
    assert attempts.pause_after(Failure(), taken=True) == 0.1


def test_reattaching_ends() -> None:
    """Past `reattach_s` since the break, the broken stream is the error."""
    clock = Clock()
    attempts = Attempts(RetryPolicy(reattach_s=5.0), clock)
    attempts.heard()
    attempts.pause_after(Failure(), taken=True)
    clock.now += 4.9
    attempts.pause_after(Failure(), taken=True)
    clock.now += 0.2
    with pytest.raises(Unavailable, match="Socket closed"):
        attempts.pause_after(Failure(), taken=True)


def test_a_stream_that_ends_early_is_a_broken_one() -> None:
    """A stream may also break by ending without an error."""
    attempts = Attempts(RetryPolicy(reattach_s=0.0), Clock())
    attempts.heard()
    with pytest.raises(Unavailable, match="before its work was done"):
        attempts.pause_after(None, taken=True)


def test_refused_while_reattaching() -> None:
    """A server that still waits for the old stream is asked again until the time is over."""
    clock = Clock()
    attempts = Attempts(RetryPolicy(reattach_s=5.0), clock)
    attempts.heard()
    attempts.pause_after(Failure())
    busy = Failure(Unavailable("another stream is still sending", retry_after_s=1.5))
    assert attempts.pause_after(busy) == 1.5
    clock.now += 5.0
    with pytest.raises(Unavailable, match="another stream"):
        attempts.pause_after(busy)


def test_what_the_server_says_is_final() -> None:
    """A server that says that the job cannot run is not asked again, whatever `retries` is."""
    attempts = Attempts(RetryPolicy(retries=5), Clock())
    attempts.heard()
    with pytest.raises(Unavailable, match="no group"):
        attempts.pause_after(Failure(Unavailable("no group")), taken=True)


def test_refused_for_now() -> None:
    """Refused work is sent again after the server's own delay, `retries` times."""
    attempts = Attempts(RetryPolicy(retries=2), Clock())
    full = Failure(Overloaded("full", retry_after_s=7.0))
    assert attempts.pause_after(full) == 7.0
    assert attempts.pause_after(Failure(Overloaded("full"))) == 0.1
    with pytest.raises(Overloaded):
        attempts.pause_after(full)


def test_a_server_that_is_away_is_waited_for() -> None:
    """New work is brought for `connect_s` to a server that cannot be reached, starts or goes; then
    the error tells how long that was tried. `retries` has no part in it.
    """
    clock = Clock()
    attempts = Attempts(RetryPolicy(connect_s=4.0), clock)
    assert attempts.pause_after(Failure()) == 0.1
    assert attempts.pause_after(Failure(Draining("going", retry_after_s=2.0))) == 2.0
    assert attempts.pause_after(Failure(Unavailable("starting"))) == 0.4
    assert attempts.pause_after(None) == 0.8
    assert (attempts.failed, attempts.problem[:16]) == (4, "The server ended")
    clock.now += 3.5
    assert attempts.pause_after(Failure()) == 0.5  # the last attempt, when the time is over
    clock.now += 0.5
    with pytest.raises(Unavailable, match=r"Cannot reach.*Tried 6 times in 4 s\."):
        attempts.pause_after(Failure())


def test_no_patience() -> None:
    """With `connect_s` 0 a server that was never reached is an error at once."""
    with pytest.raises(Unavailable, match=r"again \(gRPC says: Socket closed\)\.$"):
        Attempts(RetryPolicy(connect_s=0.0), Clock()).pause_after(Failure())


def test_wrong_requests_are_never_repeated() -> None:
    """What would fail again is not tried again."""
    attempts = Attempts(RetryPolicy(retries=9), Clock())
    with pytest.raises(InvalidRequest, match="steps"):
        attempts.pause_after(Failure(InvalidRequest("steps is 0")))


def test_work_of_a_server_that_goes_is_taken_up_at_the_next() -> None:
    """A server that drains, and one that has just begun, are no end of work that was taken."""
    clock = Clock()
    attempts = Attempts(RetryPolicy(reattach_s=10.0), clock)
    attempts.heard()
    assert attempts.pause_after(Failure(Draining("going", retry_after_s=1.0)), taken=True) == 1.0
    assert attempts.pause_after(Failure(Unavailable("starting")), taken=True) == 0.2
    clock.now += 11.0
    with pytest.raises(Unavailable, match="starting"):
        attempts.pause_after(Failure(Unavailable("starting")), taken=True)
