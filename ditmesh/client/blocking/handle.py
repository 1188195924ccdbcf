"""One job of a blocking client: a thread talks to the server, the caller reads events."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc

from ditmesh import telemetry
from ditmesh.client.blocking.outbox import Outbox
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

_SLICE_S = 0.5  # Windows delivers Ctrl-C only between waits


class JobHandle:
    """A job that was started.

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
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._lock = threading.Lock()
        self._outbox: Outbox[pb.SampleRequest] = Outbox()
        self._call: Any = None
        self._closed = False
        self._hurry = threading.Event()  # a cancel does not wait for the next attempt
        self._ended = threading.Event()
        self._error: BaseException | None = None
        run = contextvars.copy_context().run  # the caller's trace goes on in the thread
        self._thread = threading.Thread(
            target=run, args=(self._drive,), name=f"ditmesh-job-{self.job_id}", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self._next_event()
        if event is not None:
            return event
        self._events.put(None)  # for whoever asks again
        if self._error is not None:
            raise self._error
        raise StopIteration

    def result(self) -> SampleResult:
        """Wait for the job's end. Raises its error."""
        for _ in self:
            continue
        if self._conversation.result is None:
            raise InternalError("the job ended without a result")
        return self._conversation.result

    def cancel(self, timeout_s: float = CANCEL_TIMEOUT_S) -> bool:
        """Ask the server to end the job, and wait until it has; False: it had ended before.

        Raises DeadlineExceeded when the end is not confirmed within `timeout_s`.
        """
        if self._conversation.result is not None:
            return False
        self._conversation.cancel()
        with self._lock:
            self._outbox.send([CANCEL])
        self._hurry.set()
        if not _wait(self._ended, timeout_s):
            raise DeadlineExceeded(
                f"the server did not confirm the end of job {self.job_id} in {timeout_s:g} s"
            )
        return isinstance(self._error, JobCancelled)

    def close(self) -> None:
        """Leave the job: unless its end came, the server ends it when nobody comes back for it."""
        with self._lock:
            self._closed = True
            if self._call is not None and self._conversation.result is None:
                self._call.cancel()
        self._hurry.set()
        self._thread.join(timeout=5.0)

    def __enter__(self) -> JobHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self._ended.is_set():
                self.cancel()
        except DeadlineExceeded:
            if error is None:  # else it would hide what ended the block
                raise
        finally:
            # With its result here, the stream ends by itself; nobody has to wait for that.
            if self._conversation.result is None:
                self.close()

    def _next_event(self) -> Event | None:
        while True:
            try:
                return self._events.get(timeout=_SLICE_S)
            except queue.Empty:
                continue

    def _drive(self) -> None:
        """The thread: streams until the job has ended."""
        spec = self._conversation.job.spec
        try:
            with telemetry.client_span(METHOD, job_id=self.job_id, model=spec.model) as span:
                self.trace_id = span.trace_id
                while True:
                    failure = self._one_stream()
                    if self._conversation.result is not None:
                        break
                    self._pause(failure)
        except BaseException as error:
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        """Let the caller know; also before the stream is over, which takes a message more."""
        self._ended.set()
        self._events.put(None)

    def _one_stream(self) -> grpc.RpcError | None:
        """Talk until the stream ends; the failure with which it broke."""
        timeout_s = self._conversation.remaining_s()
        with self._lock:
            if self._closed:
                raise JobCancelled("the client was closed")
            outbox = self._outbox = Outbox(*self._conversation.opening())
            call = self._call = self._sample(
                iter(outbox), timeout=timeout_s, metadata=self._connection.metadata()
            )
        try:
            for response in call:
                to_send, event = self._conversation.receive(response)
                outbox.send(to_send)
                if event is not None:
                    self._events.put(event)
                if self._conversation.result is not None:
                    self._end()
        except grpc.RpcError as failure:
            return failure
        finally:
            outbox.close()
            call.cancel()
        return None

    def _pause(self, failure: grpc.RpcError | None) -> None:
        if self._closed:
            raise JobCancelled("the client was closed") from failure
        retrying = self._conversation.retry_after(failure)
        self._events.put(retrying)
        if self._hurry.is_set():
            time.sleep(retrying.pause_s)
        else:
            self._hurry.wait(retrying.pause_s)


def _wait(event: threading.Event, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not event.wait(min(_SLICE_S, max(end - time.monotonic(), 0.0))):
        if time.monotonic() >= end:
            return False
    return True
