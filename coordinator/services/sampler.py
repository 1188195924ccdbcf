"""`SamplerService`: decodes a client's stream, calls the job table, encodes the answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from coordinator.config import Limits
from coordinator.jobs.admission import check_values, knows_values
from coordinator.jobs.record import JobRecord, Listener, bare
from coordinator.jobs.runner import Runner
from coordinator.jobs.table import JobTable
from coordinator.services.identity import Identities
from coordinator.services.predict import PredictCalls
from coordinator.services.results import Results
from coordinator.services.streams import answering, read, read_until, sending
from ditmesh import rpc_status, telemetry
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, InternalError, JobCancelled, ProtocolError
from ditmesh.exchange import Receiver
from ditmesh.jobs import Job
from ditmesh.shared_memory import host_id
from ditmesh.shared_tensors import take_sealed
from ditmesh.tensors import WireTensor
from ditmesh.v1 import sampler_pb2 as pb
from ditmesh.v1 import sampler_pb2_grpc, tensor_pb2

_Context = grpc.aio.ServicerContext[Any, Any]
_Requests = AsyncIterator[pb.SampleRequest]


class SamplerServicer(sampler_pb2_grpc.SamplerServiceServicer):
    """The public sampling service."""

    def __init__(
        self,
        jobs: JobTable,
        runner: Runner,
        calls: PredictCalls,
        store: ContentStore,
        limits: Limits,
        identities: Identities,
    ) -> None:
        self._identities = identities
        self._jobs = jobs
        self._runner = runner
        self._calls = calls
        self._store = store
        self._limits = limits
        self._results = Results(store)

    async def Sample(
        self, request_iterator: _Requests, context: _Context
    ) -> AsyncIterator[pb.SampleResponse]:
        """One job."""
        async with answering(context, "ditmesh.v1.SamplerService/Sample"):
            responses = self._sample(request_iterator, context)
            async for response in sending(responses, self._limits.output_timeout_s):
                yield response

    async def Predict(
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: _Context
    ) -> AsyncIterator[pb.PredictResponse]:
        """A stream of single transformer calls."""
        async with answering(context, "ditmesh.v1.SamplerService/Predict"):
            responses = self._calls.serve(request_iterator, self._identities.of(context))
            async for response in sending(responses, self._limits.output_timeout_s):
                yield response

    async def _sample(
        self, requests: _Requests, context: _Context
    ) -> AsyncIterator[pb.SampleResponse]:
        scope = self._identities.of(context)
        first = await read(requests, self._limits.input_timeout_s)
        if first is None or first.WhichOneof("message") != "job":
            raise ProtocolError("the first message of Sample must be the job", field="job")
        span = telemetry.start_span("job", job_id=first.job.job_id, model=first.job.model)
        try:
            with telemetry.span("admit", parent=span):
                record, known = await self._jobs.open(
                    first.job, scope=scope, remaining_s=context.time_remaining(), span=span
                )
        except DitmeshError as error:
            span.fail(error)
            span.end()
            raise
        if known:
            # The job has the span that it began with.
            span.end()
        listener = self._jobs.attach(record)
        client = _Client(requests, bool(first.host) and first.host == host_id())
        try:
            if not known:
                async for response in self._take_in(record, client, first):
                    yield response
            yield self._accepted(record, known, client)
            async for response in self._follow(record, listener, client):
                yield response
        finally:
            self._jobs.detach(record, listener)

    async def _take_in(
        self, record: JobRecord, client: _Client, first: pb.SampleRequest
    ) -> AsyncIterator[pb.SampleResponse]:
        """Receive the job's tensors. A stream that ends half way ends the job."""
        receiver = Receiver(
            record.admitted.specs, field="job.tensors", store=self._store, scope=record.scope
        )
        hashes = [spec.sha256 for spec in record.admitted.specs if spec.sha256]
        self._store.pin(record.scope, hashes)
        record.unpin = lambda: self._store.unpin(record.scope, hashes)
        try:
            if client.shares and first.HasField("offered"):
                with telemetry.span("receive", parent=record.span):
                    await self._take(record, receiver, first.offered, client)
            asked = not receiver.complete
            while not receiver.complete:
                yield _needed(receiver, client)
                with telemetry.span("receive", parent=record.span):
                    await self._receive(record, receiver, client)
            tensors = receiver.tensors()
            with telemetry.span("check", parent=record.span):
                job = await self._checked(record, tensors)
        except BaseException as error:
            self._runner.fail(record, rpc_status.as_ditmesh_error(error))
            self._jobs.forget(record)
            raise
        self._raise_end(record)
        record.job = job
        self._runner.submit(record)
        if not asked:
            # Only now: it is on its way to an executor while its client reads this.
            yield _needed(receiver, client)

    async def _checked(self, record: JobRecord, tensors: tuple[WireTensor, ...]) -> Job:
        if knows_values(record.admitted, tensors):
            return check_values(record.admitted, tensors)
        # On a thread: looking at every value of a large latent takes a while.
        return await asyncio.to_thread(check_values, record.admitted, tensors)

    async def _take(
        self,
        record: JobRecord,
        receiver: Receiver,
        shared: tensor_pb2.SharedTensors,
        client: _Client,
    ) -> None:
        """Take what can be read in the client's memory. If not all can, nothing is shared."""
        if receiver.complete:
            return
        # On a thread: hashing, and looking at every value, take a while.
        await asyncio.to_thread(take_sealed, receiver, shared)
        record.received_bytes = receiver.received_bytes
        self._raise_end(record)
        client.shares = not {place.tensor for place in shared.tensors} & {*receiver.missing}

    async def _receive(self, record: JobRecord, receiver: Receiver, client: _Client) -> None:
        """Take what the client sends, until it is all there or what it shares cannot be read."""
        while not receiver.complete:
            request = await read_until(record.over, client.requests, self._limits.input_timeout_s)
            self._raise_end(record)
            kind = request.WhichOneof("message") if request is not None else None
            if request is None:
                # Tells what is missing.
                receiver.tensors()
                return
            if kind == "shared" and client.shares:
                await self._take(record, receiver, request.shared, client)
                return
            if kind == "cancel":
                raise JobCancelled("the job was cancelled before its inputs were complete")
            if kind != "chunk":
                raise ProtocolError(f"expected a chunk or cancel, got {kind}")
            receiver.feed(request.chunk)
            record.received_bytes = receiver.received_bytes

    @staticmethod
    def _raise_end(record: JobRecord) -> None:
        """Raises the error of a job that ended while its inputs came."""
        if record.phase.ended:
            raise bare(record.error or InternalError("the job ended without a reason"))

    def _accepted(self, record: JobRecord, known: bool, client: _Client) -> pb.SampleResponse:
        accepted = pb.JobAccepted(
            job_id=record.job_id,
            queue_position=self._runner.position(record),
            steps=record.admitted.steps,
            resumed=known,
            latent_bytes=record.admitted.latent_bytes,
        )
        return pb.SampleResponse(accepted=accepted, shares=client.shares)

    async def _follow(
        self, record: JobRecord, listener: Listener, client: _Client
    ) -> AsyncIterator[pb.SampleResponse]:
        """Progress until the end, then the result and the summary, or the error."""
        listening = asyncio.create_task(self._listen(record, client))
        try:
            while (message := await listener.next()) is not None:
                yield message
        finally:
            listening.cancel()
        if record.error is not None:
            raise bare(record.error)
        with telemetry.span("answer", parent=record.span):
            async for message in self._results.messages(record, client.memory):
                yield message

    async def _listen(self, record: JobRecord, client: _Client) -> None:
        """A cancel ends the job; a stream that merely ends does not."""
        with contextlib.suppress(grpc.aio.AioRpcError, StopAsyncIteration):
            async for request in client.requests:
                kind = request.WhichOneof("message")
                if kind == "cancel":
                    self._runner.stop(record, JobCancelled("the client cancelled the job"))
                elif kind == "memory" and client.shares:
                    client.memory = request.memory


@dataclass
class _Client:
    """The client's side of one stream."""

    requests: _Requests
    shares: bool
    """Whether it can be told where memory is."""
    memory: tensor_pb2.CallMemory | None = None
    """Where it has room for the result."""


def _needed(receiver: Receiver, client: _Client) -> pb.SampleResponse:
    needed = tensor_pb2.TensorsNeeded(tensors=receiver.missing)
    return pb.SampleResponse(needed=needed, shares=client.shares)
