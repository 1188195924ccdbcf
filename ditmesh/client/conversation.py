"""The client's side of `SamplerService.Sample`, without any I/O.

Whoever does the I/O, blocking or asyncio, opens streams, sends what this says, and feeds it what
comes. One conversation may take several streams: a broken one is taken up again by job id.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np

from ditmesh.chunk_messages import chunk_messages
from ditmesh.client.events import (
    Accepted,
    Done,
    Event,
    Queued,
    Retrying,
    SampleResult,
    read_progress,
    read_summary,
)
from ditmesh.client.retry import Attempts, RetryPolicy
from ditmesh.client.sharing import SharedInputs, Sharing, Written
from ditmesh.errors import DeadlineExceeded, InternalError, InvalidTensor, JobCancelled
from ditmesh.exchange import Receiver, read_specs
from ditmesh.jobs import Job, extract_state
from ditmesh.models.latents import LatentFormat
from ditmesh.output_rooms import OutputRoom
from ditmesh.tensors import HashedTensor, WireTensor
from ditmesh.v1 import sampler_pb2 as pb

METHOD = "ditmesh.v1.SamplerService/Sample"
CANCEL = pb.SampleRequest(cancel=pb.CancelJob())
CANCEL_TIMEOUT_S = 30.0
"""How long `cancel` waits for the job's end unless told otherwise."""
_MAX_RESULT_BYTES = 1 << 34

Reaction = tuple[Iterable[pb.SampleRequest], Event | None]
"""What to send, and what to tell the user."""


class SampleConversation:
    """One job from its spec to its result. Not thread-safe, except for `cancel`."""

    def __init__(
        self,
        job: Job,
        *,
        latent_format: LatentFormat | None = None,
        deadline_s: float | None = None,
        retry: RetryPolicy,
        sharing: Sharing,
        ahead: Written | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ahead`: some of the job's tensors, in memory already."""
        self.job = job
        self.result: SampleResult | None = None
        """Set once the job has succeeded."""
        self._latent_format = latent_format
        self._clock = clock
        self._deadline = None if deadline_s is None else clock() + deadline_s
        self._attempts = Attempts(retry, clock)
        self._accepted = False
        self._cancelled = False
        self._progress = pb.Progress()
        self._message: pb.SampleResult | None = None
        self._receiver: Receiver | None = None
        self._sharing = sharing
        self._shared = SharedInputs(job.tensors, ahead)
        self._room: OutputRoom | None = None

    def cancel(self) -> None:
        """From now on inputs are not sent, and every new stream asks for the job's end."""
        self._cancelled = True

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, for the next stream. Raises DeadlineExceeded."""
        if self._deadline is None:
            return None
        left = self._deadline - self._clock()
        if left <= 0:
            done = f"after step {self._progress.step} of {self._progress.steps}"
            raise DeadlineExceeded(
                "The job's deadline passed " + (done if self._progress.steps else "before a step")
            )
        return left

    def opening(self) -> list[pb.SampleRequest]:
        """The first messages of a new stream."""
        self._message = self._receiver = None
        first = pb.SampleRequest(job=self.job.spec, host=self._sharing.host)
        if self._cancelled:
            return [first, CANCEL]
        if not self._accepted:
            offered = self._shared.share(self._sharing.to_offer(self.job.tensors))
            if offered is not None:
                first.offered.CopyFrom(offered)
        return [first]

    def receive(self, response: pb.SampleResponse) -> Reaction:
        """Take a message of the server.

        Raises InternalError for what the contract forbids, InvalidTensor or ProtocolError for a
        result whose bytes are not what was declared.
        """
        self._attempts.heard()
        kind = response.WhichOneof("message")
        if kind == "needed":
            return self._inputs(tuple(response.needed.tensors), response.shares), None
        if kind == "accepted":
            self._accepted = True
            a = response.accepted
            self._shared.close()
            self._sharing.accepted(self.job.tensors, server_reads=response.shares)
            event = Accepted(a.job_id, a.steps, a.queue_position, a.resumed)
            if response.shares:
                self._room = self._sharing.rooms.take(a.latent_bytes)
            return _tell_of(self._room) if self._room is not None else (), event
        if kind == "queue":
            return (), Queued(response.queue.position)
        if kind == "progress":
            self._progress = response.progress
            return (), read_progress(response.progress)
        if kind == "result":
            self._begin_result(response)
            if response.HasField("ended"):
                return (), self._finish(response.ended)
        elif kind == "chunk":
            self._expected(self._receiver, "chunk").feed(response.chunk)
        elif kind == "summary":
            return (), self._finish(response.summary)
        return (), None

    def retry_after(self, failure: grpc.RpcError | None) -> Retrying:
        """When the next stream shall be opened; raises when there shall be none.

        `failure` is what the stream broke with, None if it ended without a result.
        """
        # At once: whoever keeps a job that failed does not keep its memory.
        self._close_memory()
        self._shared = SharedInputs(self.job.tensors)
        if failure is not None and _is_late(failure):
            self.remaining_s()  # says it better than gRPC does
        if self._cancelled and not self._accepted:
            # Whatever the server has of it ends without a client.
            raise JobCancelled("the job was cancelled before the server took it") from failure
        pause = self._attempts.pause_after(failure, taken=self._accepted)
        left = self.remaining_s()
        if left is not None and left <= pause:
            raise DeadlineExceeded(
                f"The job's deadline is {left:.1f} s away, too near for another attempt."
            ) from failure
        return Retrying(self._attempts.problem, self._attempts.failed + 1, pause)

    def _inputs(self, needed: Sequence[int], shares: bool) -> Iterable[pb.SampleRequest]:
        """Lazily: a chunk is copied when the stream has room for it."""
        check_needed(needed, self.job.tensors)
        shared = self._shared.share(needed) if shares and not self._cancelled else None
        if shared is not None:
            return (pb.SampleRequest(shared=shared),)
        pieces = chunk_messages(pb.SampleRequest, self.job.tensors, needed)
        return itertools.takewhile(lambda _: not self._cancelled, pieces)

    def _close_memory(self) -> None:
        self._shared.close()
        room, self._room = self._room, None
        if room is not None:
            # The server may yet write to it.
            room.close()

    def _begin_result(self, response: pb.SampleResponse) -> None:
        message = response.result
        specs = read_specs(message.tensors, field="result.tensors", max_bytes=_MAX_RESULT_BYTES)
        named = [message.latent]
        if message.HasField("state"):
            named += [message.state.latent, *message.state.history.values()]
        if max(named) >= len(specs):
            raise InternalError("the server's result names a tensor that it does not declare")
        self._message = message
        self._receiver = Receiver(specs, field="result.tensors")
        if response.written:
            room, self._room = self._expected(self._room, "written result"), None
            self._receiver.place({message.latent: room.read()})
            self._sharing.rooms.give_back(room)

    def _finish(self, message: pb.JobSummary) -> Done:
        result = self._expected(self._message, "summary")
        tensors = self._expected(self._receiver, "summary").tensors()
        self._close_memory()
        latent = tensors[result.latent].numpy()
        if latent.dtype != np.float32 or not latent.flags.writeable:
            # What came in pieces is nobody's to write to.
            latent = latent.astype(np.float32)
        if self._latent_format is not None:
            latent = self._latent_format.from_model_space(latent)
        self.result = SampleResult(
            latent=latent,
            state=extract_state(result.state, tensors) if result.HasField("state") else None,
            summary=read_summary(message),
        )
        return Done(self.result)

    @staticmethod
    def _expected(value: Any, kind: str) -> Any:
        if value is None:
            raise InternalError(f"the server sent a {kind} before any result")
        return value


def _tell_of(room: OutputRoom) -> Iterable[pb.SampleRequest]:
    """The server is told first; memory for what it writes can be had after that."""
    # Now: by the time that it is sent, the stream may have ended, and the room with it.
    request = pb.SampleRequest(memory=room.message)

    def tell() -> Iterator[pb.SampleRequest]:
        yield request
        room.expect()

    return tell()


def _is_late(failure: grpc.RpcError) -> bool:
    code = getattr(failure, "code", lambda: None)()
    return code is grpc.StatusCode.DEADLINE_EXCEEDED


def check_needed(needed: Sequence[int], tensors: Sequence[WireTensor]) -> None:
    """Raises InternalError when the server asks for a tensor that there is not, and InvalidTensor
    when it has forgotten one of which only the hash is here.
    """
    if needed and max(needed) >= len(tensors):
        raise InternalError(f"the server asked for tensor {max(needed)} of {len(tensors)}")
    for index in needed:
        if isinstance(tensors[index], HashedTensor):
            raise InvalidTensor(
                f"the server has forgotten {tensors[index].spec}, of which only the hash is here: "
                "encode the prompt again",
                field=f"tensors[{index}]",
            )
