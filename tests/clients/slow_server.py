"""A coordinator that has lost the prompt's tensors and reads slowly when they come again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from ditmesh.exchange import Receiver, read_specs
from ditmesh.tensors import DataType, TensorSpec, WireTensor
from ditmesh.v1 import (
    job_pb2,
    pipeline_pb2,
    pipeline_pb2_grpc,
    sampler_pb2,
    sampler_pb2_grpc,
    tensor_pb2,
)
from tests.chunks import chunks

PICTURE = b"the bytes of a picture"
_EVERYTHING = 1 << 40


class SlowServer(
    pipeline_pb2_grpc.PipelineServiceServicer, sampler_pb2_grpc.SamplerServiceServicer
):
    """Encodes any prompt to `tensors`. Its picture is PICTURE."""

    def __init__(self, *sizes: int) -> None:
        """`sizes`: bytes of each tensor."""
        self.tensors = tuple(_bytes_of(size, seed) for seed, size in enumerate(sizes))
        self.stalling = threading.Event()
        """Set once the server has asked for tensors and reads nothing."""
        self.read_on = threading.Event()
        """Set by the test, to let the server read."""
        self.uploaded: tuple[bytes, ...] = ()
        self.authorizations: set[object] = set()
        """What callers sent as "authorization"; None where there was nothing."""

    def EncodePrompt(
        self, request: pipeline_pb2.EncodePromptRequest, context: grpc.ServicerContext
    ) -> Iterator[pipeline_pb2.EncodePromptResponse]:
        self._heard(context)
        specs = [tensor.spec.to_proto() for tensor in self.tensors]
        conditioning = job_pb2.Conditioning(text=0, pooled=1)
        encoded = pipeline_pb2.EncodedPrompt(tensors=specs, conditioning=conditioning)
        yield pipeline_pb2.EncodePromptResponse(encoded=encoded)
        for chunk in chunks(self.tensors, range(len(self.tensors))):
            yield pipeline_pb2.EncodePromptResponse(chunk=chunk)

    def Sample(
        self, request_iterator: Iterator[sampler_pb2.SampleRequest], context: grpc.ServicerContext
    ) -> Iterator[sampler_pb2.SampleResponse]:
        self._heard(context)
        job = next(request_iterator).job
        receiver = Receiver(
            read_specs(job.tensors, field="tensors", max_bytes=_EVERYTHING), field="tensors"
        )
        needed = tensor_pb2.TensorsNeeded(tensors=receiver.needed)
        yield sampler_pb2.SampleResponse(needed=needed)
        self.stalling.set()
        assert self.read_on.wait(60)
        while not receiver.complete:
            receiver.feed(next(request_iterator).chunk)
        self.uploaded = tuple(bytes(tensor.data) for tensor in receiver.tensors())
        yield sampler_pb2.SampleResponse(accepted=sampler_pb2.JobAccepted(job_id="j", steps=1))
        latent = _bytes_of(4, 9)
        result = sampler_pb2.SampleResult(tensors=[latent.spec.to_proto()])
        yield sampler_pb2.SampleResponse(result=result)
        for chunk in chunks([latent], [0]):
            yield sampler_pb2.SampleResponse(chunk=chunk)
        yield sampler_pb2.SampleResponse(summary=sampler_pb2.JobSummary(job_id="j"))

    def DecodeLatent(
        self,
        request_iterator: Iterator[pipeline_pb2.DecodeLatentRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pipeline_pb2.DecodeLatentResponse]:
        self._heard(context)
        first = next(request_iterator).latent
        assert first.format == pipeline_pb2.IMAGE_FORMAT_PNG
        specs = read_specs([first.latent], field="latent", max_bytes=_EVERYTHING)
        receiver = Receiver(specs, field="latent")
        yield pipeline_pb2.DecodeLatentResponse(needed=tensor_pb2.TensorsNeeded(tensors=[0]))
        while not receiver.complete:
            receiver.feed(next(request_iterator).chunk)
        picture = WireTensor(TensorSpec(DataType.U8, (len(PICTURE),)), PICTURE)
        images = pipeline_pb2.DecodedImages(tensors=[picture.spec.to_proto()])
        yield pipeline_pb2.DecodeLatentResponse(images=images)
        for chunk in chunks([picture], [0]):
            yield pipeline_pb2.DecodeLatentResponse(chunk=chunk)

    def _heard(self, context: grpc.ServicerContext) -> None:
        self.authorizations.add(dict(context.invocation_metadata()).get("authorization"))


@contextmanager
def serving(
    servicer: SlowServer, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """The address at which it listens, encrypted if there are credentials."""
    server = grpc.server(ThreadPoolExecutor(4))
    pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(servicer, server)
    sampler_pb2_grpc.add_SamplerServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        servicer.read_on.set()
        server.stop(None).wait()


def _bytes_of(size: int, seed: int) -> WireTensor:
    block = hashlib.shake_256(bytes([seed])).digest(1 << 20)
    data = (block * (size // len(block) + 1))[:size]
    return WireTensor(TensorSpec(DataType.U8, (size,)), data).hashed()
