"""When a client tries again: which failures, for how long, after which pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from ditmesh import rpc_status, telemetry
from ditmesh.errors import DitmeshError, Draining, Retry, Unavailable

FIRST_DELAY_S = 0.1
"""Pause before the first new attempt; each further one is twice as long."""
LONGEST_DELAY_S = 1.0
"""The longest pause between attempts, unless the server asks for more."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is.

    retries: further attempts for work that a full server refused for now.
    connect_s: seconds for which a client tries to bring new work to a server that cannot be
        reached, shuts down or is still starting.
    reattach_s: seconds for which a client tries to take up work whose stream broke.
    """

    retries: int = 0
    connect_s: float = 10.0
    reattach_s: float = 30.0


class Attempts:
    """The attempts at one piece of work. `now` is on a monotonic clock, in seconds.

    Trying again is safe: the server knows a job by its id and spec, and any other call has no
    effect beyond its answer.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self.failed = 0
        """Attempts that failed since the server was heard last."""
        self.problem = ""
        """What the last one failed with, in words."""
        self._policy = policy
        self._clock = clock
        self._left = policy.retries
        self._delay = FIRST_DELAY_S
        self._heard = False
        self._away_since: float | None = None

    def heard(self) -> None:
        """The server answered on the present stream."""
        self._heard = True
        self._away_since = None
        self._delay = FIRST_DELAY_S
        self.failed = 0

    def pause_after(self, failure: grpc.RpcError | None, *, taken: bool = False) -> float:
        """Seconds to wait before the next attempt; raises the failure when there is none.

        `failure` is None for a stream that ended before its work. `taken`: the server has
        accepted the work, so what it says about it is final, except that it shuts down.
        """
        error: DitmeshError = (
            Unavailable("The server ended the stream before its work was done.")
            if failure is None
            else rpc_status.from_rpc_error(failure)
        )
        self.failed += 1
        self.problem = error.message
        if self._comes_back(error, failure, taken):
            pause = self._wait_for_server(error, failure)
        elif taken or error.retry is not Retry.LATER or self._left <= 0:
            raise error from failure
        else:
            self._left -= 1
            pause = error.retry_after_s or self._next_delay()
        telemetry.add_event("retry", problem=error.message, pause_s=pause, attempt=self.failed + 1)
        return pause

    def _comes_back(self, error: DitmeshError, failure: grpc.RpcError | None, taken: bool) -> bool:
        """Whether the server, and not the work, is the matter, and time may mend it."""
        if failure is None or stream_broke(failure):
            return True
        if self._heard and self._away_since is not None and error.retry is Retry.LATER:
            # It has just come and knows neither the work nor its nodes yet; or it has not noticed
            # that the old stream is gone.
            return True
        # Before it takes work, a server is unavailable only while it starts or goes.
        return isinstance(error, Draining if taken else Unavailable)

    def _wait_for_server(self, error: DitmeshError, failure: grpc.RpcError | None) -> float:
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
        patience = self._policy.reattach_s if self._heard else self._policy.connect_s
        if now - self._away_since >= patience:
            tried = f" Tried {self.failed} times in {patience:g} s." if self.failed > 1 else ""
            raise type(error)(
                f"{error.message}{tried}", field=error.field, retry_after_s=error.retry_after_s
            ) from failure
        left = self._away_since + patience - now
        return min(max(self._next_delay(), error.retry_after_s or 0.0), max(left, FIRST_DELAY_S))

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
