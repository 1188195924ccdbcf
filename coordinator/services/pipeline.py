"""`PipelineService` to clients: checks, relays to the local sampler's process, remembers.

What a prompt was encoded to stays in the content store under its hash, so that a job which
uses it need not send it back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar, cast

import grpc.aio

from coordinator.cluster.cluster import Cluster
from coordinator.config import Limits
from coordinator.jobs.checks import latent_tensor
from coordinator.services.identity import Identities
from coordinator.services.streams import answering, read
from ditmesh import telemetry
from ditmesh.aio_status import CallStatus
from ditmesh.chunk_messages import chunk_messages
from ditmesh.content import ContentStore
from ditmesh.errors import (
    InternalError,
    InvalidRequest,
    InvalidTensor,
    LimitExceeded,
    ProtocolError,
    Unavailable,
)
from ditmesh.exchange import Receiver, read_specs
from ditmesh.tensors import WireTensor
from ditmesh.v1 import cluster_pb2, pipeline_pb2_grpc, tensor_pb2
from ditmesh.v1 import pipeline_pb2 as pb

M = TypeVar("M", pb.EncodePromptResponse, pb.DecodeLatentResponse)

_Call = grpc.aio.UnaryStreamCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any]
_Context = grpc.aio.ServicerContext[Any, Any]
_RETRY_AFTER_S = 2.0


class PipelineServicer(pipeline_pb2_grpc.PipelineServiceServicer):
    """The public side of text encoding and latent decoding."""

    def __init__(
        self, cluster: Cluster, store: ContentStore, limits: Limits, identities: Identities
    ) -> None:
        self._identities = identities
        self._cluster = cluster
        self._store = store
        self._limits = limits

    async def EncodePrompt(
        self, request: pb.EncodePromptRequest, context: _Context
    ) -> AsyncIterator[pb.EncodePromptResponse]:
        """Encode one prompt."""
        async with answering(context, "ditmesh.v1.PipelineService/EncodePrompt"):
            scope = self._identities.of(context)
            self._model(request.model, "model")
            if len(request.prompt) > self._limits.prompt_characters:
                raise LimitExceeded(
                    f"the prompt has {len(request.prompt)} characters; this server takes at most "
                    f"{self._limits.prompt_characters}",
                    field="prompt",
                )
            call = self._stub().EncodePrompt(
                request, timeout=context.time_remaining(), metadata=telemetry.current_metadata()
            )
            header = (await _next(call, pb.EncodePromptResponse)).encoded
            tensors = await self._collect(header.tensors, call, pb.EncodePromptResponse)
            for tensor in tensors:
                self._store.put(scope, tensor)
            yield pb.EncodePromptResponse(encoded=header)
            wanted = () if request.hashes_only else range(len(tensors))
            for message in chunk_messages(pb.EncodePromptResponse, tensors, wanted):
                yield message

    async def DecodeLatent(
        self, request_iterator: AsyncIterator[pb.DecodeLatentRequest], context: _Context
    ) -> AsyncIterator[pb.DecodeLatentResponse]:
        """Decode a batch of latents."""
        async with answering(context, "ditmesh.v1.PipelineService/DecodeLatent"):
            scope = self._identities.of(context)
            first = await read(request_iterator, self._limits.input_timeout_s)
            if first is None or first.WhichOneof("message") != "latent":
                raise ProtocolError("the first message must be the latent", field="latent")
            receiver = self._announced(first.latent, scope)
            yield pb.DecodeLatentResponse(needed=tensor_pb2.TensorsNeeded(tensors=receiver.needed))
            while not receiver.complete:
                request = await read(request_iterator, self._limits.input_timeout_s)
                if request is None or request.WhichOneof("message") != "chunk":
                    raise ProtocolError("expected a chunk of the latent")
                receiver.feed(request.chunk)
            latent = receiver.tensors()[0]
            if not latent.all_finite():
                raise InvalidTensor(
                    "the latent has values that are NaN or infinite", field="latent.latent"
                )
            header, tensors = await self._decode(first, latent, context)
            yield pb.DecodeLatentResponse(images=header)
            for message in chunk_messages(pb.DecodeLatentResponse, tensors, range(len(tensors))):
                yield message

    def _announced(self, wanted: pb.LatentToDecode, scope: str) -> Receiver:
        model = self._model(wanted.model, "latent.model")
        specs = read_specs(
            [wanted.latent], field="latent.latent", max_bytes=self._limits.request_bytes
        )
        shape = latent_tensor(specs[0], "latent.latent", model, self._limits)
        if shape[1] != model.latent_channels:
            raise InvalidTensor(
                f"the latent has {shape[1]} channels, the model {model.latent_channels}",
                field="latent.latent",
            )
        return Receiver(specs, field="latent", store=self._store, scope=scope)

    async def _decode(
        self, header: pb.DecodeLatentRequest, latent: WireTensor, context: _Context
    ) -> tuple[pb.DecodedImages, tuple[WireTensor, ...]]:
        call = self._stub().DecodeLatent(
            timeout=context.time_remaining(), metadata=telemetry.current_metadata()
        )
        status = CallStatus(call)
        try:
            await call.write(header)
            needed = (await _next(call, pb.DecodeLatentResponse)).needed
            for message in chunk_messages(pb.DecodeLatentRequest, [latent], needed.tensors):
                await call.write(message)
            await call.done_writing()
        except grpc.aio.AioRpcError as failure:
            raise await status.of(failure) from failure
        images = (await _next(call, pb.DecodeLatentResponse)).images
        return images, await self._collect(images.tensors, call, pb.DecodeLatentResponse)

    async def _collect(
        self, specs: Sequence[tensor_pb2.TensorSpec], call: _Call, kind: type[M]
    ) -> tuple[WireTensor, ...]:
        limit = self._limits.request_bytes
        receiver = Receiver(read_specs(specs, field="answer", max_bytes=limit), field="answer")
        while not receiver.complete:
            receiver.feed((await _next(call, kind)).chunk)
        return receiver.tensors()

    def _model(self, name: str, field: str) -> cluster_pb2.Model:
        model = self._cluster.find_model(name, field=field)
        if not model.has_pipeline:
            raise InvalidRequest(
                f"model {name!r} has no text encoders and VAE; encode and decode on your side",
                field=field,
            )
        return model

    def _stub(self) -> pipeline_pb2_grpc.PipelineServiceAsyncStub:
        local = self._cluster.local
        if local is None or not local.up:
            raise Unavailable(
                "encoding and decoding run in the coordinator's local sampler, which is not there "
                "now",
                retry_after_s=_RETRY_AFTER_S,
            )
        return local.pipeline_stub


async def _next(call: _Call, kind: type[M]) -> M:
    message = await call.read()
    if message is grpc.aio.EOF:
        raise InternalError("the local sampler ended its answer too early")
    return cast(M, message)
