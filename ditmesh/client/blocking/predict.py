"""Single transformer calls of a blocking client, over one long-lived stream."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from ditmesh.client.blocking.outbox import Outbox
from ditmesh.client.conditioning import Conditioning, TensorLike
from ditmesh.client.connection import Connection
from ditmesh.client.prediction import PredictExchange, PredictOpening, PredictTarget
from ditmesh.client.retry import Attempts
from ditmesh.client.stream_memory import StreamMemory
from ditmesh.errors import DeadlineExceeded
from ditmesh.v1 import sampler_pb2 as pb


class PredictStream:
    """Calls of one model. One at a time: further threads wait for their turn.

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
        self._turn = threading.Lock()
        self._attempts = Attempts(connection.retry)
        self._ids = itertools.count(1)
        self._call: Any = None
        self._outbox: Outbox[pb.PredictRequest] = Outbox()
        self._memory = StreamMemory()

    def predict(
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
        with self._turn:
            while not exchange.done:
                failure = self._attempt(exchange, timeout_s)
                if not exchange.done:
                    time.sleep(self._attempts.pause_after(failure))
            self.executor = exchange.executor
            self.fallback_reason = exchange.fallback_reason
        return exchange.answer()

    def close(self) -> None:
        """End the stream; a later call opens another."""
        call, self._call = self._call, None
        self._outbox.close()
        self._memory.close()
        if call is not None:
            call.cancel()

    def __enter__(self) -> PredictStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _attempt(self, exchange: PredictExchange, timeout_s: float | None) -> grpc.RpcError | None:
        """Send the call and read its answer; the failure with which the stream broke."""
        parts: list[PredictOpening | PredictExchange] = (
            [exchange] if self._call is not None else [self._open(), exchange]
        )
        call = self._call
        late = threading.Event()
        timer = None if timeout_s is None else threading.Timer(timeout_s, _expire, (late, call))
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            for _ in exchange.place(self._memory):
                pass  # nobody waits for a turn
            for part in parts:
                self._outbox.send(part.opening())
                while not part.done:
                    response = next(call)
                    self._attempts.heard()
                    self._outbox.send(part.receive(response))
        except StopIteration:
            return None
        except grpc.RpcError as failure:
            if late.is_set():
                raise DeadlineExceeded(f"no answer came within {timeout_s:g} s") from failure
            return failure
        finally:
            if timer is not None:
                timer.cancel()
            if not exchange.done:
                self.close()  # half a call is on its way: this stream cannot be used again
        return None

    def _open(self) -> PredictOpening:
        opening = PredictOpening(self._target)
        self._outbox, self._memory = Outbox(), StreamMemory()
        self._call = self._predict(iter(self._outbox), metadata=self._connection.metadata())
        return opening


def _expire(late: threading.Event, call: grpc.Call) -> None:
    late.set()
    call.cancel()
