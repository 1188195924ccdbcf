"""When a client tries again: which failures, how often, after which pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ditmesh import rpc_status
from ditmesh.errors import DitmeshError, Draining, Retry, Unavailable

FIRST_DELAY_S = 0.1
"""Pause before the first new attempt; each further one is twice as long."""
LONGEST_DELAY_S = 2.0
"""The longest pause between attempts, unless the server asks for more."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is.

    retries: further attempts for work that was refused for now (a full queue, a server that
        drains) or whose server was not reached at all.
    reattach_s: seconds for which a client tries to take up a job whose stream broke.
    """

    retries: int = 0
    reattach_s: float = 30.0


class Attempts:
    """The attempts at one piece of work. `now` is on a monotonic clock, in seconds.

    Trying again is safe: the server knows a job by its id and spec, and a transformer call has no
    effect beyond its answer.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._left = policy.retries
        self._delay = FIRST_DELAY_S
        self._heard = False
        self._broken_since: float | None = None

    def heard(self) -> None:
        """The server answered on the present stream."""
        self._heard = True
        self._broken_since = None
        self._delay = FIRST_DELAY_S

    def pause_after(self, failure: grpc.RpcError | None, *, taken: bool) -> float:
        """Seconds to wait before the next attempt; raises the failure when there is none.

        `failure` is None for a stream that ended before its work. `taken`: the server has
        accepted the work, so what it says about it is final, except that it shuts down.
        """
        error: DitmeshError = (
            Unavailable("The server ended the stream before its work was done.")
            if failure is None
            else rpc_status.from_rpc_error(failure)
        )
        if self._heard and (failure is None or stream_broke(failure)):
            return self._reattach(error, failure)
        if (taken and isinstance(error, Draining)) or self._sent_again(error):
            # The server goes; or it has just come and knows neither the work nor its nodes yet;
            # or it has not noticed that the old stream is gone.
            pause = self._reattach(error, failure)
            return max(pause, error.retry_after_s or 0.0)
        if taken or error.retry is not Retry.LATER or self._left <= 0:
            raise error from failure
        self._left -= 1
        return error.retry_after_s or self._next_delay()

    def _sent_again(self, error: DitmeshError) -> bool:
        """Whether this refuses for now an attempt to take up what broke, and not the work."""
        return self._broken_since is not None and error.retry is Retry.LATER

    def _reattach(self, error: DitmeshError, failure: grpc.RpcError | None) -> float:
        now = self._clock()
        if self._broken_since is None:
            self._broken_since = now
        if now - self._broken_since >= self._policy.reattach_s:
            raise error from failure
        return self._next_delay()

    def _next_delay(self) -> float:
        delay = self._delay
        self._delay = min(2 * delay, LONGEST_DELAY_S)
        return delay


def stream_broke(failure: grpc.RpcError) -> bool:
    """Whether the connection failed, as opposed to a server that says it is unavailable."""
    code = getattr(failure, "code", lambda: None)()
    trailing = getattr(failure, "trailing_metadata", lambda: None)() or ()
    answered = any(key == rpc_status.STATUS_KEY for key, _ in trailing)
    return code is grpc.StatusCode.UNAVAILABLE and not answered
