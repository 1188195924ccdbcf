"""`PipelineService` inside the local sampler's process, on a torch thread of its own."""

from __future__ import annotations

import io
import logging
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import grpc
import numpy as np
import torch
from PIL import Image

from ditmesh import rpc_status, telemetry
from ditmesh.chunk_messages import chunk_messages
from ditmesh.errors import DitmeshError, InvalidRequest, ProtocolError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.models.describe import has_pipeline
from ditmesh.models.info import Catalogue
from ditmesh.models.pipeline import EncodedPrompt, Pipeline
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import from_torch, to_torch
from ditmesh.v1 import job_pb2, pipeline_pb2, pipeline_pb2_grpc, tensor_pb2

log = logging.getLogger(__name__)


class PipelineWorker(pipeline_pb2_grpc.PipelineServiceServicer):
    """Text encoders and VAEs; the most recently used one stays in memory."""

    def __init__(
        self, catalogue: Catalogue, device: torch.device, dtype: torch.dtype, max_bytes: int
    ) -> None:
        self._catalogue = catalogue
        self._device = device
        self._dtype = dtype
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeline")

    def EncodePrompt(
        self, request: pipeline_pb2.EncodePromptRequest, context: grpc.ServicerContext
    ) -> Iterator[pipeline_pb2.EncodePromptResponse]:
        """A prompt's tensors, with their hashes."""
        try:
            with _span("EncodePrompt", context, request.model):
                encoded = self._thread.submit(self._encode, request.model, request.prompt).result()
            yield from _encoded_messages(encoded)
        except Exception as error:
            _fail(context, error)

    def DecodeLatent(
        self,
        request_iterator: Iterator[pipeline_pb2.DecodeLatentRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pipeline_pb2.DecodeLatentResponse]:
        """Pictures of a batch of latents."""
        try:
            first = next(request_iterator, None)
            if first is None or first.WhichOneof("message") != "latent":
                raise ProtocolError("the first message must be the latent", field="latent")
            wanted = first.latent
            specs = read_specs([wanted.latent], field="latent", max_bytes=self._max_bytes)
            receiver = Receiver(specs, field="latent")
            needed = tensor_pb2.TensorsNeeded(tensors=receiver.needed)
            yield pipeline_pb2.DecodeLatentResponse(needed=needed)
            while not receiver.complete:
                request = next(request_iterator, None)
                if request is None or request.WhichOneof("message") != "chunk":
                    raise ProtocolError("expected a chunk of the latent")
                receiver.feed(request.chunk)
            with _span("DecodeLatent", context, wanted.model):
                pictures = self._thread.submit(
                    self._decode, wanted.model, receiver.tensors()[0]
                ).result()
            yield from _image_messages(pictures, wanted.format)
        except Exception as error:
            _fail(context, error)

    def _encode(self, model: str, prompt: str) -> EncodedPrompt:
        return self._pipeline(model).encode(prompt)

    def _decode(self, model: str, latent: WireTensor) -> torch.Tensor:
        return self._pipeline(model).decode(to_torch(latent))

    def _pipeline(self, name: str) -> Pipeline:
        if name not in self._loaded:
            info = self._catalogue.get(name)
            if not has_pipeline(info):
                raise InvalidRequest(
                    f"model {name!r} has no text encoders and VAE in its folder; encode and "
                    "decode on your side",
                    field="model",
                )
            self._loaded.clear()
            self._loaded[name] = Pipeline(info.path, self._device, self._dtype)
        return self._loaded[name]


def _span(
    method: str, context: grpc.ServicerContext, model: str
) -> AbstractContextManager[telemetry.Span]:
    return telemetry.server_span(
        f"ditmesh.v1.PipelineService/{method}", context.invocation_metadata(), model=model
    )


def _encoded_messages(encoded: EncodedPrompt) -> Iterator[pipeline_pb2.EncodePromptResponse]:
    tensors = [from_torch(encoded.text).hashed(), from_torch(encoded.pooled).hashed()]
    header = pipeline_pb2.EncodedPrompt(
        tensors=[t.spec.to_proto() for t in tensors],
        conditioning=job_pb2.Conditioning(text=0, pooled=1),
        truncated_tokens=encoded.truncated_tokens,
    )
    yield pipeline_pb2.EncodePromptResponse(encoded=header)
    yield from chunk_messages(pipeline_pb2.EncodePromptResponse, tensors, range(len(tensors)))


def _image_messages(
    pictures: torch.Tensor, image_format: pipeline_pb2.ImageFormat
) -> Iterator[pipeline_pb2.DecodeLatentResponse]:
    if image_format == pipeline_pb2.IMAGE_FORMAT_PNG:
        tensors = [
            WireTensor.from_numpy(np.frombuffer(png(picture), dtype=np.uint8))
            for picture in pictures
        ]
    else:
        tensors = [from_torch(pictures)]
    header = pipeline_pb2.DecodedImages(tensors=[t.spec.to_proto() for t in tensors])
    yield pipeline_pb2.DecodeLatentResponse(images=header)
    yield from chunk_messages(pipeline_pb2.DecodeLatentResponse, tensors, range(len(tensors)))


def png(picture: torch.Tensor) -> bytes:
    """The PNG file of one picture, fp32 [H, W, 3] with values 0 to 1."""
    pixels = (picture * 255).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _fail(context: grpc.ServicerContext, error: Exception) -> None:
    if not isinstance(error, DitmeshError) and context.is_active():
        log.exception("pipeline request failed")
    rpc_status.abort_sync(context, rpc_status.as_ditmesh_error(error))
