"""The client's side of `SamplerService.Predict`, without any I/O: one call at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ditmesh import rpc_status
from ditmesh.chunk_messages import chunk_messages
from ditmesh.client.conditioning import Conditioning, TensorLike, TensorTable, to_wire
from ditmesh.client.conversation import check_needed
from ditmesh.client.job import Fallback, fallback_policy
from ditmesh.client.stream_memory import StreamMemory
from ditmesh.client.weights import WeightPatch, patch_messages
from ditmesh.errors import DitmeshError, InternalError
from ditmesh.exchange import Receiver, count_unhashed, read_specs
from ditmesh.shared_memory import host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import sampler_pb2 as pb

_MAX_OUTPUT_BYTES = 1 << 34


@dataclass(frozen=True)
class PredictTarget:
    """What the calls of a stream are for. Raises InvalidRequest for an unknown policy."""

    model: str
    fallback: Fallback = "allow"
    weight_patches: Sequence[WeightPatch] = ()

    def __post_init__(self) -> None:
        fallback_policy(self.fallback, "open.fallback")


class PredictOpening:
    """The beginning of one stream. Done at once, unless weight patches have to be sent first."""

    def __init__(self, target: PredictTarget) -> None:
        """Raises InvalidTensor for patches that cannot be sent."""
        table = TensorTable()
        self._message = pb.PredictOpen(
            model=target.model,
            fallback=fallback_policy(target.fallback, "open.fallback"),
            weight_patches=patch_messages(target.weight_patches, table),
            host=host_id(),
        )
        self._message.tensors.extend(tensor.spec.to_proto() for tensor in table.tensors)
        self._tensors = table.tensors
        self.done = not target.weight_patches

    def opening(self) -> Iterable[pb.PredictRequest]:
        """The first message."""
        return (pb.PredictRequest(open=self._message),)

    def receive(self, response: pb.PredictResponse) -> Iterable[pb.PredictRequest]:
        """Take a message of the server; what to send next. Raises InternalError."""
        if response.WhichOneof("message") != "needed":
            raise InternalError("the server did not say which tensors of the patches it needs")
        self.done = True
        return _sent(self._tensors, response.needed.tensors)


class PredictExchange:
    """One transformer call from its tensors to its answer."""

    def __init__(
        self,
        call_id: int,
        x: TensorLike,
        timestep: float | Sequence[float],
        conditioning: Conditioning,
    ) -> None:
        """Raises InvalidTensor for what cannot be sent."""
        table = TensorTable()
        self._call = pb.PredictCall(
            call_id=call_id,
            # New in every call: a hash would be for nothing, and a copy as well.
            x=table.add(to_wire(x, "x", copy=False)),
            timestep=(timestep,) if isinstance(timestep, (int, float)) else timestep,
            conditioning=conditioning.to_proto(table),
        )
        self._call.tensors.extend(tensor.spec.to_proto() for tensor in table.tensors)
        self._tensors = table.tensors
        self._memory = StreamMemory()
        self._receiver: Receiver | None = None
        self.output: npt.NDArray[np.generic] | None = None
        """The answer, once it is whole: shape of `x`, bf16 as float32."""
        self.error: DitmeshError | None = None
        """Why the call failed, if it did; the stream can go on."""
        self.executor = ""
        """"group" or "local"."""
        self.fallback_reason = ""
        """Why it was not the group; empty when it was."""

    @property
    def done(self) -> bool:
        """Whether the call was answered, one way or the other."""
        return self.output is not None or self.error is not None

    def place(self, memory: StreamMemory) -> Iterator[None]:
        """Begin on a stream: put what is new into the stream's memory, if it is shared. To be
        iterated over, with turns for others in between.
        """
        self._memory, self._receiver = memory, None
        yield from memory.fill(self._tensors, self._call.x)

    def opening(self) -> Iterable[pb.PredictRequest]:
        """The call's first messages."""
        memory = self._memory.message
        # The server asks for these in any case: they are not worth the wait.
        unasked = 0 if memory is not None else count_unhashed(t.spec for t in self._tensors)
        self._call.unasked = unasked
        first = pb.PredictRequest(call=self._call, memory=memory)
        return itertools.chain((first,), _sent(self._tensors, range(unasked)))

    def receive(self, response: pb.PredictResponse) -> Iterable[pb.PredictRequest]:
        """Take a message of the server; what to send next.

        Raises InternalError for what the contract forbids, InvalidTensor or ProtocolError for an
        answer whose bytes are not what was declared: then the stream is of no further use.
        """
        kind = response.WhichOneof("message")
        if kind == "needed":
            return self._asked(response.needed.tensors)
        if kind == "error":
            self._same_call(response.error.call_id)
            self._memory.close()
            self.error = rpc_status.from_status_bytes(response.error.status)
        elif kind == "result":
            self._begin_result(response)
        elif kind == "chunk":
            self._feed(response)
        return ()

    def answer(self) -> npt.NDArray[np.generic]:
        """The output. Raises the error with which the call failed."""
        if self.output is None:
            raise self.error or InternalError("the call was not answered")
        return self.output

    def _asked(self, indices: Sequence[int]) -> Iterator[pb.PredictRequest]:
        # An older server asks for what is on its way as well.
        needed = [index for index in indices if index >= self._call.unasked]
        messages = _sent(self._tensors, needed)
        in_memory = self._memory.message is not None
        if in_memory and not all(self._tensors[index].spec.sha256 for index in needed):
            self._memory.unreadable()
        return messages

    def _begin_result(self, response: pb.PredictResponse) -> None:
        result = response.result
        self._same_call(result.call_id)
        specs = read_specs([result.output], field="result.output", max_bytes=_MAX_OUTPUT_BYTES)
        self.executor, self.fallback_reason = result.executor, result.fallback_reason
        if response.shares:
            self._memory.offered()
        if response.written:
            self._finish(WireTensor(specs[0], self._memory.output[: specs[0].nbytes]))
        else:
            self._receiver = Receiver(specs, field="result.output")

    def _feed(self, response: pb.PredictResponse) -> None:
        if self._receiver is None:
            raise InternalError("the server sent a chunk before any result")
        self._receiver.feed(response.chunk)
        if self._receiver.complete:
            self._finish(self._receiver.tensors()[0])

    def _finish(self, output: WireTensor) -> None:
        # The caller's own: what it came in may be the next call's.
        self.output = output.numpy().copy()
        self._memory.rest()

    def _same_call(self, call_id: int) -> None:
        if call_id != self._call.call_id:
            raise InternalError(
                f"the server answered call {call_id} instead of {self._call.call_id}"
            )


def _sent(tensors: Sequence[WireTensor], needed: Sequence[int]) -> Iterator[pb.PredictRequest]:
    """The tensors that are needed, as messages made when there is room for them."""
    check_needed(needed, tensors)
    return chunk_messages(pb.PredictRequest, tensors, tuple(needed))
