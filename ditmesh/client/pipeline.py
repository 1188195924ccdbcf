"""The client's side of `PipelineService`, without any I/O: prompts in, pictures out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ditmesh.chunk_messages import chunk_messages
from ditmesh.client.conditioning import Conditioning, TensorLike, to_wire
from ditmesh.client.conversation import check_needed
from ditmesh.errors import InternalError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.tensors import HashedTensor, WireTensor
from ditmesh.v1 import job_pb2
from ditmesh.v1 import pipeline_pb2 as pb

ENCODE = "ditmesh.v1.PipelineService/EncodePrompt"
DECODE = "ditmesh.v1.PipelineService/DecodeLatent"
_MAX_BYTES = 1 << 34


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model's text encoders see it.

    Its conditioning holds `WireTensor`s (`.numpy()` gives arrays), so that a job names them by
    the hashes under which the server has them already. With `hashes_only` the hashes are all there
    is: a job whose server has forgotten the tensors fails with InvalidTensor, and the prompt is to
    be encoded again.
    """

    conditioning: Conditioning
    truncated_tokens: int
    """Tokens that were cut off because the prompt was too long."""


class EncodeExchange:
    """One prompt, from its text to its conditioning."""

    def __init__(self, model: str, prompt: str, *, hashes_only: bool = False) -> None:
        """`hashes_only`: the tensors stay with the server."""
        self.request = pb.EncodePromptRequest(model=model, prompt=prompt, hashes_only=hashes_only)
        self._message: pb.EncodedPrompt | None = None
        self._receiver: Receiver | None = None

    def receive(self, response: pb.EncodePromptResponse) -> None:
        """Take a message of the server. Raises InternalError, InvalidTensor or ProtocolError."""
        kind = response.WhichOneof("message")
        if kind == "encoded":
            self._message = response.encoded
            specs = read_specs(
                response.encoded.tensors, field="encoded.tensors", max_bytes=_MAX_BYTES
            )
            self._receiver = Receiver(specs, field="encoded.tensors")
        elif kind == "chunk":
            if self._receiver is None:
                raise InternalError("the server sent a chunk before it declared any tensor")
            self._receiver.feed(response.chunk)

    def finish(self) -> EncodedPrompt:
        """The end of the stream. Raises InternalError or ProtocolError when it came too soon."""
        if self._message is None or self._receiver is None:
            raise InternalError("the server ended the call without a conditioning")
        if self.request.hashes_only:
            tensors: tuple[WireTensor, ...] = tuple(map(HashedTensor, self._receiver.specs))
        else:
            tensors = self._receiver.tensors()
        found = _conditioning(self._message.conditioning, tensors)
        return EncodedPrompt(found, self._message.truncated_tokens)


class DecodeExchange:
    """One batch of latents, from model space to pictures."""

    def __init__(self, model: str, latent: TensorLike, image_format: pb.ImageFormat) -> None:
        """Raises InvalidTensor for what cannot be sent."""
        tensor = to_wire(latent, "latent")
        self._latents = [tensor.hashed()]
        self._opening = pb.LatentToDecode(
            model=model, latent=self._latents[0].spec.to_proto(), format=image_format
        )
        self._receiver: Receiver | None = None

    def opening(self) -> pb.DecodeLatentRequest:
        """The first message."""
        return pb.DecodeLatentRequest(latent=self._opening)

    def receive(self, response: pb.DecodeLatentResponse) -> Iterable[pb.DecodeLatentRequest]:
        """Take a message of the server; what to send next. Raises as `EncodeExchange.receive`."""
        kind = response.WhichOneof("message")
        if kind == "needed":
            needed = tuple(response.needed.tensors)
            check_needed(needed, self._latents)
            return chunk_messages(pb.DecodeLatentRequest, self._latents, needed)
        if kind == "images":
            specs = read_specs(
                response.images.tensors, field="images.tensors", max_bytes=_MAX_BYTES
            )
            self._receiver = Receiver(specs, field="images.tensors")
        elif kind == "chunk":
            if self._receiver is None:
                raise InternalError("the server sent a chunk before it declared any picture")
            self._receiver.feed(response.chunk)
        return ()

    def finish(self) -> tuple[WireTensor, ...]:
        """The end of the stream. Raises InternalError or ProtocolError when it came too soon."""
        if self._receiver is None:
            raise InternalError("the server ended the call without a picture")
        return self._receiver.tensors()


def png_files(tensors: Iterable[WireTensor]) -> list[bytes]:
    """The files of a batch that was asked for as PNG."""
    return [bytes(tensor.data) for tensor in tensors]


def float_images(tensors: tuple[WireTensor, ...]) -> npt.NDArray[np.float32]:
    """The batch [B, H, W, 3] that was asked for as F32. Raises InternalError for more than one."""
    if len(tensors) != 1:
        raise InternalError(f"the server sent {len(tensors)} tensors instead of one batch")
    return tensors[0].numpy().astype(np.float32)


def _conditioning(message: job_pb2.Conditioning, tensors: tuple[WireTensor, ...]) -> Conditioning:
    named = [message.text, message.pooled, *message.extra.values()]
    if not message.HasField("text") or max(named) >= len(tensors):
        raise InternalError("the server's conditioning names a tensor that it does not declare")
    return Conditioning(
        text=tensors[message.text],
        pooled=tensors[message.pooled] if message.HasField("pooled") else None,
        guidance=tuple(message.guidance) or None,
        extra={name: tensors[index] for name, index in message.extra.items()},
    )
