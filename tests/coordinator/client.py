"""A bare client of the public service, for tests: messages as the contract has them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from coordinator.services.identity import Identities
from coordinator.services.predict import PredictCalls
from coordinator.services.sampler import SamplerServicer
from ditmesh import chunk_messages
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError
from ditmesh.rpc_status import from_rpc_error
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, sampler_pb2_grpc
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.fakes import World, settled, stop, world


async def read_all(call: Any) -> list[Any]:
    """Every answer of a call until its end. Raises AioRpcError."""
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


class Served:
    """A coordinator's sampling service on a local port, and a stub for it."""

    def __init__(self, w: World, address: str, stub: sampler_pb2_grpc.SamplerServiceStub) -> None:
        self.world = w
        self.address = address
        self.stub: Any = stub

    async def sample(
        self, spec: job_pb2.JobSpec, tensors: Sequence[WireTensor], **options: Any
    ) -> list[pb.SampleResponse]:
        """A whole job. Raises the error that the service answered."""
        call = self.stub.Sample(**options)
        try:
            return await self.drive(call, spec, tensors)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()

    async def drive(
        self, call: Any, spec: job_pb2.JobSpec, tensors: Sequence[WireTensor]
    ) -> list[pb.SampleResponse]:
        """Send a job on a call, and all that is asked for; returns every answer."""
        await call.write(pb.SampleRequest(job=spec))
        answers = []
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer)
            if answer.HasField("needed"):
                for chunk in chunks(tensors, answer.needed.tensors):
                    await call.write(pb.SampleRequest(chunk=chunk))
        return answers

    async def refused(
        self, spec: job_pb2.JobSpec, tensors: Sequence[WireTensor], **options: Any
    ) -> DitmeshError:
        """The error of a job that must be refused.

        Over a blocking channel: asyncio's tells INTERNAL instead of the server's status when the
        stream ends while a message is being written.
        """
        return await asyncio.to_thread(self._refused, spec, tensors, options)

    def _refused(
        self, spec: job_pb2.JobSpec, tensors: Sequence[WireTensor], options: dict[str, Any]
    ) -> DitmeshError:
        outbox: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        outbox.put(pb.SampleRequest(job=spec))
        answer = None
        with grpc.insecure_channel(self.address) as channel:
            stub = sampler_pb2_grpc.SamplerServiceStub(channel)
            try:
                for answer in stub.Sample(iter(outbox.get, None), **options):
                    for chunk in chunks(tensors, answer.needed.tensors):
                        outbox.put(pb.SampleRequest(chunk=chunk))
            except grpc.RpcError as error:
                return from_rpc_error(error)
            finally:
                outbox.put(None)
        raise AssertionError(f"the job was taken: {answer}")

    async def answered(self, messages: Iterable[pb.SampleRequest]) -> DitmeshError:
        """The error that messages are answered with, sent one after another whatever comes.

        Over a blocking channel, as `refused`.
        """
        return await asyncio.to_thread(self._answered, messages)

    def _answered(self, messages: Iterable[pb.SampleRequest]) -> DitmeshError:
        with grpc.insecure_channel(self.address) as channel:
            try:
                answers = list(sampler_pb2_grpc.SamplerServiceStub(channel).Sample(iter(messages)))
            except grpc.RpcError as error:
                return from_rpc_error(error)
        raise AssertionError(f"it was taken: {answers[-1]}")

    async def assert_clean(self) -> None:
        """Nothing is retained, and the service is alive."""
        jobs = self.world.jobs
        await settled(lambda: [r for r in jobs._records.values() if not r.phase.ended])
        await settled(lambda: jobs.bytes_in_flight)
        await settled(lambda: [r for r in jobs._records.values() if r.listeners])


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[Served]:
    """`world(**options)` behind a gRPC server on a free port."""
    async with world(**options) as w:
        store = ContentStore(w.limits.content_bytes)
        calls = PredictCalls(w.scheduler, w.cluster, w.metrics, store, w.limits, w.jobs.reserved)
        server = grpc.aio.server()
        servicer = SamplerServicer(w.jobs, w.runner, calls, store, w.limits, Identities())
        sampler_pb2_grpc.add_SamplerServiceServicer_to_server(
            servicer, chunk_messages.server(server)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Served(w, f"127.0.0.1:{port}", sampler_pb2_grpc.SamplerServiceStub(channel))
        finally:
            await stop(server)
            for timer in w.jobs._timers.values():
                timer.cancel()
