"""Single transformer calls of an asyncio client, over one long-lived stream."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from ditmesh.aio_status import CallStatus
from ditmesh.client.aio.outbox import Outbox
from ditmesh.client.conditioning import Conditioning, TensorLike
from ditmesh.client.connection import Connection
from ditmesh.client.prediction import PredictExchange, PredictOpening, PredictTarget
from ditmesh.client.retry import Attempts
from ditmesh.client.stream_memory import StreamMemory
from ditmesh.errors import DeadlineExceeded
from ditmesh.v1 import sampler_pb2 as pb


class AsyncPredictStream:
    """Calls of one model. One at a time: further tasks wait for their turn.

    A stream that breaks is opened again and the call repeated, within the time that the client's
    `reattach_s` gives; before the first answer, `connect_s`.
    """

    def __init__(self, predict: Any, connection: Connection, target: PredictTarget) -> None:
        """`predict` is the stub's method."""
        self.executor = ""
        """Who answered last: "group" or "local"."""
        self.fallback_reason = ""
        """Why the last answer did not come from the group; empty when it did."""
        self._predict = predict
        self._connection = connection
        self._target = target
        self._turn = asyncio.Lock()
        self._attempts = Attempts(connection.retry)
        self._ids = itertools.count(1)
        self._call: Any = None
        self._status: CallStatus | None = None
        self._outbox: Outbox[pb.PredictRequest] = Outbox()
        self._memory = StreamMemory()

    async def predict(
        self,
        x: TensorLike,
        timestep: float | Sequence[float],
        conditioning: Conditioning,
        *,
        timeout_s: float | None = None,
    ) -> npt.NDArray[np.generic]:
        """The raw output of the transformer for `x` [B, C, H, W] in model space.

        `timestep` is one for all or one for each batch item, as the model takes it (Flux: the
        sigma). The output has the shape of `x`, and its type except that bf16 is float32. The
        conditioning is sent once, as long as the server remembers it. `x` must stay as it is
        until the answer is there.
        """
        exchange = PredictExchange(next(self._ids), x, timestep, conditioning)
        async with self._turn:
            while not exchange.done:
                failure = await self._timed_attempt(exchange, timeout_s)
                if not exchange.done:
                    await asyncio.sleep(self._attempts.pause_after(failure))
            self.executor = exchange.executor
            self.fallback_reason = exchange.fallback_reason
        return exchange.answer()

    async def close(self) -> None:
        """End the stream; a later call opens another."""
        self._drop(self._call)

    async def __aenter__(self) -> AsyncPredictStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _timed_attempt(
        self, exchange: PredictExchange, timeout_s: float | None
    ) -> grpc.RpcError | None:
        """As `_attempt`. Raises DeadlineExceeded after `timeout_s` seconds."""
        opening = self._open() if self._call is None else None
        call = self._call
        # Not wait_for: before Python 3.12 it may swallow a cancellation.
        attempt = asyncio.create_task(self._attempt(opening, exchange, call, self._outbox))
        try:
            done, _ = await asyncio.wait([attempt], timeout=timeout_s)
        finally:
            attempt.cancel()
            if not exchange.done:
                self._drop(call)  # half a call is on its way: it cannot be used again
        if not done:
            raise DeadlineExceeded(f"no answer came within {timeout_s:g} s")
        return attempt.result()

    async def _attempt(
        self,
        opening: PredictOpening | None,
        exchange: PredictExchange,
        call: Any,
        outbox: Outbox[pb.PredictRequest],
    ) -> grpc.RpcError | None:
        """Send the call and read its answer; the failure with which the stream broke."""
        status = self._status
        parts: list[PredictOpening | PredictExchange] = [exchange]
        if opening is not None:
            parts.insert(0, opening)
        try:
            for _ in exchange.place(self._memory):
                await asyncio.sleep(0)
            for part in parts:
                outbox.send(part.opening())
                while not part.done:
                    response = await call.read()
                    if response is grpc.aio.EOF:
                        return None
                    self._attempts.heard()
                    outbox.send(part.receive(response))
        except grpc.RpcError as failure:
            return failure if status is None else await status.of(failure)
        return None

    def _open(self) -> PredictOpening:
        opening = PredictOpening(self._target)
        self._outbox, self._memory = Outbox(), StreamMemory()
        self._call = self._predict(aiter(self._outbox), metadata=self._connection.metadata())
        self._status = CallStatus(self._call)
        return opening

    def _drop(self, call: Any) -> None:
        if call is not None and call is self._call:
            self._call = None
            self._outbox.close()
            self._memory.close()
            call.cancel()
