"""A coordinator in this process that answers as the contract says, and misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import numpy as np

from ditmesh.attached_memory import AttachedMemory, CallViews
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, JobCancelled
from ditmesh.exchange import Receiver, read_specs
from ditmesh.jobs import spec_digest
from ditmesh.rpc_status import abort_sync, to_status_bytes
from ditmesh.shared_memory import host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    job_pb2,
    pipeline_pb2,
    pipeline_pb2_grpc,
    sampler_pb2_grpc,
    tensor_pb2,
)
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks

T = TypeVar("T")

STEPS = 4
LIMIT = 1 << 30


class Broken(Exception):
    """Makes the fake end a stream as a lost connection does."""


@dataclass
class FakeJob:
    """A job that the fake knows."""

    spec: job_pb2.JobSpec
    tensors: tuple[WireTensor, ...]
    step: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class Stream:
    """What came in on one stream."""

    metadata: dict[str, str | bytes]
    requests: list[pb.SampleRequest] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The requests by the names of their oneof."""
        return [request.WhichOneof("message") or "" for request in self.requests]


class Fake(
    sampler_pb2_grpc.SamplerServiceServicer,
    cluster_pb2_grpc.ClusterServiceServicer,
    pipeline_pb2_grpc.PipelineServiceServicer,
):
    """Every step adds 1 to the latent. Hooks are called where tests want something to happen."""

    def __init__(self) -> None:
        self.store = ContentStore(LIMIT)
        self.jobs: dict[str, FakeJob] = {}
        self.streams: list[Stream] = []
        self.predict_opens: list[pb.PredictOpen] = []
        self.needed: list[tuple[int, ...]] = []
        self.asks_for_all = False
        """Whether it is a server from before calls could send tensors unasked."""
        self.calls: list[CallViews | None] = []
        """What each call brought along in memory."""
        self.blind = False
        """Whether it says that it shares memory, and then cannot read it."""
        self.polls: list[tuple[tuple[str, str | bytes], ...]] = []
        self.before_job: Callable[[int], None] = lambda stream: None
        self.before_chunk: Callable[[int], None] = lambda offset: None
        self.before_step: Callable[[int, int], None] = lambda stream, step: None
        self.before_call: Callable[[int], None] = lambda call: None
        self.replies: Callable[[pb.SampleResponse], Iterator[pb.SampleResponse]] = _as_is
        self.cluster = cluster_pb2.GetClusterResponse()

    def Sample(
        self, request_iterator: Iterator[pb.SampleRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SampleResponse]:
        """One job: every step adds 1 to its latent."""
        stream = Stream(dict(context.invocation_metadata()))
        self.streams.append(stream)
        requests = _recorded(request_iterator, stream.requests)
        try:
            for response in self._sample(len(self.streams), requests):
                yield from self.replies(response)
        except Broken:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
        except DitmeshError as error:
            abort_sync(context, error)

    def _sample(
        self, number: int, requests: Iterator[pb.SampleRequest]
    ) -> Iterator[pb.SampleResponse]:
        spec = _next(requests).job
        self.before_job(number)
        known = self.jobs.get(spec.job_id)
        if known is None:
            receiver = self._receiver(spec.tensors)
            yield pb.SampleResponse(needed=tensor_pb2.TensorsNeeded(tensors=receiver.needed))
            while not receiver.complete:
                request = _next(requests)
                if request.WhichOneof("message") == "cancel":
                    raise JobCancelled("cancelled while its inputs were sent")
                self.before_chunk(request.chunk.offset)
                receiver.feed(request.chunk)
            job = self.jobs[spec.job_id] = FakeJob(spec, receiver.tensors())
        else:
            job = known
            assert spec_digest(job.spec) == spec_digest(spec)
        yield pb.SampleResponse(
            accepted=pb.JobAccepted(
                job_id=spec.job_id, queue_position=1, steps=STEPS, resumed=known is not None
            )
        )
        threading.Thread(target=_watch, args=(requests, job), daemon=True).start()
        yield pb.SampleResponse(queue=pb.QueuePosition(position=0))
        while job.step < STEPS:
            self.before_step(number, job.step)
            if job.cancelled.is_set():
                raise JobCancelled("the client cancelled the job")
            job.step += 1
            yield pb.SampleResponse(progress=_progress(job))
        yield from _result(job)

    def Predict(
        self, request_iterator: Iterator[pb.PredictRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.PredictResponse]:
        """The answer of a call is x times its timestep."""
        try:
            opened = _next(request_iterator).open
            self.predict_opens.append(opened)
            if opened.weight_patches:
                receiver = self._receiver(opened.tensors)
                yield pb.PredictResponse(needed=tensor_pb2.TensorsNeeded(tensors=receiver.needed))
                while not receiver.complete:
                    receiver.feed(_next(request_iterator).chunk)
            attached = AttachedMemory()
            for request in request_iterator:
                seen = request.HasField("memory") and not self.blind
                self.calls.append(attached.of(request.memory) if seen else None)
                for response in self._predict(request.call, self.calls[-1], request_iterator):
                    response.shares = opened.host == host_id()
                    yield response
        except Broken:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")

    def _predict(
        self, call: pb.PredictCall, views: CallViews | None, requests: Iterator[pb.PredictRequest]
    ) -> Iterator[pb.PredictResponse]:
        receiver = self._receiver(call.tensors)
        if views is not None:
            specs = receiver.specs
            receiver.place({i: view[: specs[i].nbytes] for i, view in views.tensors.items()})
        asked = receiver.missing if self.asks_for_all else receiver.missing[call.unasked :]
        if asked:
            yield pb.PredictResponse(needed=tensor_pb2.TensorsNeeded(tensors=asked))
        while not receiver.complete:
            receiver.feed(_next(requests).chunk)
        try:
            self.before_call(call.call_id)
        except DitmeshError as error:
            failure = pb.CallError(call_id=call.call_id, status=to_status_bytes(error))
            yield pb.PredictResponse(error=failure)
            return
        x = receiver.tensors()[call.x]
        output = WireTensor.from_numpy(x.numpy().astype(np.float32) * call.timestep[0])
        result = pb.PredictResult(
            call_id=call.call_id,
            output=output.spec.to_proto(),
            executor="local",
            fallback_reason="NO_GROUP",
        )
        if views is not None:
            views.output[: output.spec.nbytes] = output.data
            yield pb.PredictResponse(result=result, written=True)
            return
        yield pb.PredictResponse(result=result)
        for chunk in chunks([output], [0]):
            yield pb.PredictResponse(chunk=chunk)

    def GetCluster(
        self, request: cluster_pb2.GetClusterRequest, context: grpc.ServicerContext
    ) -> cluster_pb2.GetClusterResponse:
        """What the test has set."""
        self.polls.append(tuple(context.invocation_metadata()))
        return self.cluster

    def EncodePrompt(
        self, request: pipeline_pb2.EncodePromptRequest, context: grpc.ServicerContext
    ) -> Iterator[pipeline_pb2.EncodePromptResponse]:
        """As many tokens as the prompt has letters."""
        length = len(request.prompt)
        tensors = [
            WireTensor.from_numpy(np.full((1, length, 4), 0.5, np.float16)).hashed(),
            WireTensor.from_numpy(np.ones((1, 2), np.float32)).hashed(),
        ]
        encoded = pipeline_pb2.EncodedPrompt(
            tensors=[tensor.spec.to_proto() for tensor in tensors],
            conditioning=job_pb2.Conditioning(text=0, pooled=1, guidance=[3.5]),
            truncated_tokens=2,
        )
        yield pipeline_pb2.EncodePromptResponse(encoded=encoded)
        for tensor in tensors:
            self.store.put("", tensor)
        for chunk in chunks(tensors, () if request.hashes_only else range(len(tensors))):
            yield pipeline_pb2.EncodePromptResponse(chunk=chunk)

    def DecodeLatent(
        self,
        request_iterator: Iterator[pipeline_pb2.DecodeLatentRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pipeline_pb2.DecodeLatentResponse]:
        """The first three channels, or a text instead of a PNG file."""
        order = _next(request_iterator).latent
        receiver = self._receiver([order.latent])
        yield pipeline_pb2.DecodeLatentResponse(
            needed=tensor_pb2.TensorsNeeded(tensors=receiver.needed)
        )
        while not receiver.complete:
            receiver.feed(_next(request_iterator).chunk)
        latent = receiver.tensors()[0].numpy()
        images = [WireTensor.from_numpy(np.moveaxis(latent[:, :3], 1, -1))]
        if order.format == pipeline_pb2.IMAGE_FORMAT_PNG:
            files = [f"png {i} of {order.model}".encode() for i in range(len(latent))]
            images = [WireTensor.from_numpy(np.frombuffer(f, np.uint8)) for f in files]
        declared = pipeline_pb2.DecodedImages(tensors=[i.spec.to_proto() for i in images])
        yield pipeline_pb2.DecodeLatentResponse(images=declared)
        for chunk in chunks(images, range(len(images))):
            yield pipeline_pb2.DecodeLatentResponse(chunk=chunk)

    def _receiver(self, messages: object) -> Receiver:
        specs = read_specs(list(messages), field="tensors", max_bytes=LIMIT)  # type: ignore[call-overload]
        receiver = Receiver(specs, field="tensors", store=self.store)
        self.needed.append(receiver.needed)
        return receiver


def serve(fake: Fake, address: str = "127.0.0.1:0") -> tuple[grpc.Server, str]:
    """Starts the fake; the server and its address."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    sampler_pb2_grpc.add_SamplerServiceServicer_to_server(fake, server)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(fake, server)
    pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(address)
    server.start()
    return server, f"127.0.0.1:{port}"


def latent_of(job: FakeJob) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The latent of a job as it stands: what was sent, or zeros, plus its steps and its seed."""
    empty = job.spec.empty_latent
    start = (
        job.tensors[job.spec.latent_tensor].numpy()
        if job.spec.WhichOneof("latent") == "latent_tensor"
        else np.zeros((empty.batch, 16, empty.height, empty.width))
    )
    return (start + job.step + job.spec.seed).astype(np.float32)


def _progress(job: FakeJob) -> pb.Progress:
    progress = pb.Progress(step=job.step, steps=STEPS, sigma=1 - job.step / STEPS, executor="group")
    if job.spec.HasField("preview") and job.step % job.spec.preview.every_steps == 0:
        picture = WireTensor.from_numpy(np.full((1, 2, 2, 3), job.step, np.uint8))
        progress.preview.CopyFrom(
            tensor_pb2.InlineTensor(spec=picture.spec.to_proto(), data=bytes(picture.data))
        )
    return progress


def _result(job: FakeJob) -> Iterator[pb.SampleResponse]:
    tensors = [WireTensor.from_numpy(latent_of(job))]
    result = pb.SampleResult(latent=0)
    if job.spec.return_state:
        tensors += [tensors[0], WireTensor.from_numpy(np.ones((1, 1), np.float32))]
        result.state.CopyFrom(job_pb2.JobState(step=STEPS, latent=1, history={"d": 2}))
    result.tensors.extend(tensor.spec.to_proto() for tensor in tensors)
    yield pb.SampleResponse(result=result)
    for chunk in chunks(tensors, range(len(tensors))):
        yield pb.SampleResponse(chunk=chunk)
    segment = pb.Segment(
        executor="group", epoch=3, ranks=8, mesh="ulysses=8", end_step=STEPS, seconds=0.5
    )
    summary = pb.JobSummary(job_id=job.spec.job_id, trace_id="ab" * 16, segments=[segment])
    fallback = pb.Fallback(
        source="group", target="local", reason="GROUP_LOST", message="a rank died", at_step=2
    )
    summary.fallbacks.append(fallback)
    yield pb.SampleResponse(summary=summary)


def _next(requests: Iterator[T]) -> T:
    """The next request. A stream that has ended ends the call, and not this generator."""
    for request in requests:
        return request
    raise Broken


def _as_is(response: pb.SampleResponse) -> Iterator[pb.SampleResponse]:
    yield response


def _recorded(
    requests: Iterator[pb.SampleRequest], into: list[pb.SampleRequest]
) -> Iterator[pb.SampleRequest]:
    for request in requests:
        into.append(request)
        yield request


def _watch(requests: Iterator[pb.SampleRequest], job: FakeJob) -> None:
    try:
        for request in requests:
            if request.WhichOneof("message") == "cancel":
                job.cancelled.set()
    except Exception:  # the stream is gone, in whichever way gRPC says so
        return
