"""One job of an asyncio client: a task talks to the server, the caller reads events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import grpc

from ditmesh import telemetry
from ditmesh.aio_status import CallStatus
from ditmesh.client.aio.outbox import Outbox
from ditmesh.client.connection import Connection
from ditmesh.client.conversation import (
    CANCEL,
    CANCEL_TIMEOUT_S,
    METHOD,
    SampleConversation,
)
from ditmesh.client.events import Event, SampleResult
from ditmesh.errors import DeadlineExceeded, InternalError, JobCancelled
from ditmesh.v1 import sampler_pb2 as pb

# That a stream takes to end when it has brought the result.
_END_S = 5.0


class AsyncJobHandle:
    """A job that was started; made on the event loop that it lives on.

    Iterate over it for its events, which end with `Done`; or ask for its `result`. As a context
    manager it cancels the job when the block is left before the job's end. Iterating raises the
    job's error; every error is one of `ditmesh.errors`.
    """

    def __init__(
        self, sample: Any, connection: Connection, conversation: SampleConversation
    ) -> None:
        """`sample` is the stub's method."""
        self.job_id = conversation.job.spec.job_id
        self.trace_id = ""
        """32 hexadecimal digits, known before the first event; empty outside any trace."""
        self._sample = sample
        self._connection = connection
        self._conversation = conversation
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._outbox: Outbox[pb.SampleRequest] = Outbox()
        # Done when a cancel came: it does not wait for the next attempt.
        self._hurry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: BaseException | None = None
        self._task = asyncio.create_task(self._drive(), name=f"ditmesh-job-{self.job_id}")

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self._events.get()
        if event is not None:
            return event
        self._events.put_nowait(None)  # for whoever asks again
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def result(self) -> SampleResult:
        """Wait for the job's end. Raises its error."""
        async for _ in self:
            continue
        if self._conversation.result is None:
            raise InternalError("the job ended without a result")
        return self._conversation.result

    async def cancel(self, timeout_s: float = CANCEL_TIMEOUT_S) -> bool:
        """Ask the server to end the job, and wait until it has; False: it had ended before.

        Raises DeadlineExceeded when the end is not confirmed within `timeout_s`.
        """
        if self._conversation.result is not None:
            return False
        self._conversation.cancel()
        self._outbox.send([CANCEL])
        if not self._hurry.done():
            self._hurry.set_result(None)
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        if not done:
            raise DeadlineExceeded(
                f"the server did not confirm the end of job {self.job_id} in {timeout_s:g} s"
            )
        return isinstance(self._error, JobCancelled)

    async def close(self) -> None:
        """Leave the job: unless its end came, the server ends it when nobody comes back for it."""
        if self._conversation.result is not None:
            await asyncio.wait([self._task], timeout=_END_S)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def __aenter__(self) -> AsyncJobHandle:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self._task.done() and self._conversation.result is None:
                await self.cancel()
        except DeadlineExceeded:
            if error is None:  # else it would hide what ended the block
                raise
        finally:
            # With its result here, the stream ends by itself; nobody has to wait for that.
            if self._conversation.result is None:
                await self.close()

    async def _drive(self) -> None:
        """The task: streams until the job has ended."""
        spec = self._conversation.job.spec
        try:
            with telemetry.client_span(METHOD, job_id=self.job_id, model=spec.model) as span:
                self.trace_id = span.trace_id
                while True:
                    failure = await self._one_stream()
                    if self._conversation.result is not None:
                        break
                    await self._pause(failure)
        except asyncio.CancelledError:
            self._error = JobCancelled("the client was closed")
        except BaseException as error:
            self._error = error
        finally:
            self._events.put_nowait(None)

    async def _one_stream(self) -> grpc.RpcError | None:
        """Talk until the stream ends; the failure with which it broke."""
        timeout_s = self._conversation.remaining_s()
        outbox = self._outbox = Outbox(*self._conversation.opening())
        call = self._sample(aiter(outbox), timeout=timeout_s, metadata=self._connection.metadata())
        status = CallStatus(call)
        try:
            async for response in call:
                to_send, event = self._conversation.receive(response)
                outbox.send(to_send)
                if event is not None:
                    self._events.put_nowait(event)
                if self._conversation.result is not None:
                    self._events.put_nowait(None)
        except grpc.RpcError as failure:
            return await status.of(failure)
        finally:
            outbox.close()
            call.cancel()
        return None

    async def _pause(self, failure: grpc.RpcError | None) -> None:
        retrying = self._conversation.retry_after(failure)
        self._events.put_nowait(retrying)
        if self._hurry.done():
            await asyncio.sleep(retrying.pause_s)
        else:
            # Not wait_for: before Python 3.12 it may swallow a cancellation.
            await asyncio.wait([self._hurry], timeout=retrying.pause_s)
