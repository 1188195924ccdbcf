"""`SamplerService`: decodes a client's stream, calls the job table, encodes the answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
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
from coordinator.services.streams import answering, read, read_until, sending
from ditmesh import rpc_status, telemetry
from ditmesh.chunk_messages import chunk_messages
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, InternalError, JobCancelled, ProtocolError
from ditmesh.exchange import Receiver
from ditmesh.jobs import Job
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
        try:
            if not known:
                async for response in self._take_in(record, requests):
                    yield response
            yield self._accepted(record, known)
            async for response in self._follow(record, listener, requests):
                yield response
        finally:
            self._jobs.detach(record, listener)

    async def _take_in(
        self, record: JobRecord, requests: _Requests
    ) -> AsyncIterator[pb.SampleResponse]:
        """Receive the job's tensors. A stream that ends half way ends the job."""
        receiver = Receiver(
            record.admitted.specs, field="job.tensors", store=self._store, scope=record.scope
        )
        hashes = [spec.sha256 for spec in record.admitted.specs if spec.sha256]
        self._store.pin(record.scope, hashes)
        record.unpin = lambda: self._store.unpin(record.scope, hashes)
        needed = pb.SampleResponse(needed=tensor_pb2.TensorsNeeded(tensors=receiver.needed))
        try:
            if receiver.needed:
                yield needed
            with telemetry.span("receive", parent=record.span):
                tensors = await self._receive(record, receiver, requests)
            with telemetry.span("check", parent=record.span):
                job = await self._checked(record, tensors)
        except BaseException as error:
            self._runner.fail(record, rpc_status.as_ditmesh_error(error))
            self._jobs.forget(record)
            raise
        self._raise_end(record)
        record.job = job
        self._runner.submit(record)
        if not receiver.needed:
            # Only now: it is on its way to an executor while its client reads this.
            yield needed

    async def _checked(self, record: JobRecord, tensors: tuple[WireTensor, ...]) -> Job:
        if knows_values(record.admitted, tensors):
            return check_values(record.admitted, tensors)
        # On a thread: looking at every value of a large latent takes a while.
        return await asyncio.to_thread(check_values, record.admitted, tensors)

    async def _receive(
        self, record: JobRecord, receiver: Receiver, requests: _Requests
    ) -> tuple[WireTensor, ...]:
        while not receiver.complete:
            request = await read_until(record.over, requests, self._limits.input_timeout_s)
            self._raise_end(record)
            kind = request.WhichOneof("message") if request is not None else None
            if request is None:
                break
            if kind == "cancel":
                raise JobCancelled("the job was cancelled before its inputs were complete")
            if kind != "chunk":
                raise ProtocolError(f"expected a chunk or cancel, got {kind}")
            receiver.feed(request.chunk)
            record.received_bytes = receiver.received_bytes
        return receiver.tensors()

    @staticmethod
    def _raise_end(record: JobRecord) -> None:
        """Raises the error of a job that ended while its inputs came."""
        if record.phase.ended:
            raise bare(record.error or InternalError("the job ended without a reason"))

    def _accepted(self, record: JobRecord, known: bool) -> pb.SampleResponse:
        accepted = pb.JobAccepted(
            job_id=record.job_id,
            queue_position=self._runner.position(record),
            steps=record.admitted.steps,
            resumed=known,
        )
        return pb.SampleResponse(accepted=accepted)

    async def _follow(
        self, record: JobRecord, listener: Listener, requests: _Requests
    ) -> AsyncIterator[pb.SampleResponse]:
        """Progress until the end, then the result and the summary, or the error."""
        canceller = asyncio.create_task(self._await_cancel(record, requests))
        try:
            while (message := await listener.next()) is not None:
                yield message
        finally:
            canceller.cancel()
        if record.error is not None:
            raise bare(record.error)
        if record.end is None or record.end.result is None:
            raise InternalError("the job ended without a result")
        with telemetry.span("answer", parent=record.span):
            result, tensors = self._named(record.end.result, record.end.tensors, record.scope)
            yield pb.SampleResponse(result=result)
            for message in chunk_messages(pb.SampleResponse, tensors, range(len(tensors))):
                yield message
            yield pb.SampleResponse(summary=record.summary())

    def _named(
        self, result: pb.SampleResult, tensors: Sequence[WireTensor], scope: str
    ) -> tuple[pb.SampleResult, Sequence[WireTensor]]:
        """The result with its latent kept, so that decoding it needs no upload."""
        # Hashed already, unless it comes out of the journal.
        latent = tensors[result.latent].hashed()
        self._store.put(scope, latent)
        named = pb.SampleResult()
        named.CopyFrom(result)
        named.tensors[result.latent].CopyFrom(latent.spec.to_proto())
        return named, tensors

    async def _await_cancel(self, record: JobRecord, requests: _Requests) -> None:
        """A cancel ends the job; a stream that merely ends does not."""
        with contextlib.suppress(grpc.aio.AioRpcError, StopAsyncIteration):
            async for request in requests:
                if request.WhichOneof("message") == "cancel":
                    self._runner.stop(record, JobCancelled("the client cancelled the job"))
