"""The status with which a server ended an asyncio call, whatever grpc.aio makes of it.

A server that refuses what is still on its way ends the call with a status that says why. When a
message of this side then fails to be written, grpc.aio puts "INTERNAL: Internal error from Core"
in that status's place (https://github.com/grpc/grpc/issues/36066). The threaded API does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

_NOT_ITS_WORDS = "Internal error from Core"
# The server's status and the failed write are events of one moment; either may come first.
_TURNS = 50
_TURN_S = 0.01


class CallStatus:
    """Remembers the first status of a call; made together with the call."""

    def __init__(self, call: Any) -> None:
        """`call` is a call of grpc.aio."""
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def of(self, failure: grpc.RpcError) -> grpc.RpcError:
        """What the call failed with: `failure`, or what the server said and `failure` hides."""
        if not _is_doubtful(failure):
            return failure
        if self._first is not None and not _is_doubtful(self._first):
            return self._first
        for _ in range(_TURNS):
            latest = self._now()
            if not _is_doubtful(latest):
                return latest
            await asyncio.sleep(_TURN_S)
        return failure

    def _note(self, _: Any) -> None:
        # At once: the next turn of the event loop may replace it.
        self._first = self._now()

    def _now(self) -> grpc.aio.AioRpcError:
        """The status as it stands; the call is done."""
        call = self._call
        return grpc.aio.AioRpcError(
            _value(call.code()),
            grpc.aio.Metadata(),
            _value(call.trailing_metadata()),
            _value(call.details()),
        )


def _value(answer: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that need not wait."""
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    answer.close()
    raise RuntimeError("the call is not done")


def _is_doubtful(failure: grpc.RpcError) -> bool:
    """Whether a status is grpc.aio's own word, in the place of the server's."""
    return (
        isinstance(failure, grpc.aio.AioRpcError)
        and failure.code() is grpc.StatusCode.INTERNAL
        and failure.details() == _NOT_ITS_WORDS
    )
