"""Streams kept open to the members of an executor, for single transformer calls.

A call to several members has a barrier: each says that it is ready before any starts. What is new
in every call goes along with it, in memory or in chunks; what members may have is asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import grpc.aio

from coordinator.executors.sharing import Share
from coordinator.nodes.link import NodeLink
from ditmesh import telemetry
from ditmesh.aio_status import CallStatus
from ditmesh.call_memory import CallMemory
from ditmesh.chunk_messages import chunk_messages
from ditmesh.errors import DitmeshError, InternalError
from ditmesh.exchange import Receiver, count_unhashed, read_specs
from ditmesh.rpc_status import from_status_bytes
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, node_pb2, sampler_pb2

_Call = grpc.aio.StreamStreamCall[node_pb2.PredictStepRequest, node_pb2.PredictStepResponse]
Answer = WireTensor | DitmeshError | None
"""The output (leader), the error of this call, or nothing (the other members)."""

_MAX_ANSWER_BYTES = 4 << 30
_ANSWERS = ("needed", "ready", "result", "error")
# Tensors, those of weight patches too, may come over a slow network.
_PREPARE_S = 1800.0
# One call of the transformer, which may compile first.
_CALL_S = 300.0

Together = Callable[..., Awaitable[list[Any]]]
"""Does one step on each member, `limit_s` seconds at most: see `Executor`."""


@dataclass(frozen=True, eq=False)
class PatchedModel:
    """A model and the weight patches of a stream; `key` is equal for equal ones."""

    name: str
    patches: tuple[job_pb2.WeightPatch, ...] = ()
    tensors: tuple[WireTensor, ...] = ()

    @cached_property
    def key(self) -> bytes:
        """Over names, patches and the tensors' contents."""
        digest = hashlib.sha256(self.name.encode())
        for patch in self.patches:
            digest.update(patch.SerializeToString(deterministic=True))
        for tensor in self.tensors:
            digest.update(tensor.hashed().spec.sha256)
        return digest.digest()


class PredictLane:
    """One `PredictStep` stream to each member."""

    def __init__(
        self, members: Sequence[NodeLink], epoch: int, mesh_index: int, model: PatchedModel
    ) -> None:
        opened = node_pb2.PredictStepOpen(
            epoch=epoch,
            mesh=mesh_index,
            model=model.name,
            weight_patches=model.patches,
            tensors=[tensor.spec.to_proto() for tensor in model.tensors],
        )
        self._links = members
        self._memory = CallMemory()
        self._members = [_MemberLane(link, opened, model, self._memory) for link in members]

    async def predict(
        self,
        call: sampler_pb2.PredictCall,
        tensors: Sequence[WireTensor],
        together: Together,
    ) -> Answer:
        """The leader's answer to a call. Calls must not overlap.

        When this raises or is cancelled, half a call may be on its way: the lane can only be
        closed then.
        """
        if any(link.is_here for link in self._links):
            for _ in self._memory.fill(tensors, call.x):
                await asyncio.sleep(0)
        first, *others = self._members
        answers: list[Answer]
        with Share(tensors) as share:
            if first.is_open and not others:
                # Nobody else has to be ready.
                answers = await together([first.whole(call, share)], limit_s=_CALL_S)
            else:
                await together([m.prepare(call, share) for m in self._members], limit_s=_PREPARE_S)
                answers = await together([m.compute() for m in self._members], limit_s=_CALL_S)
        self._memory.rest()
        return answers[0]

    def close(self) -> None:
        """End the streams."""
        for member in self._members:
            member.close()
        self._memory.close()


class _MemberLane:
    def __init__(
        self,
        link: NodeLink,
        opened: node_pb2.PredictStepOpen,
        model: PatchedModel,
        memory: CallMemory,
    ) -> None:
        self._link = link
        self._open = opened
        self._model = model
        self._memory = memory
        self._sees_memory = True
        self._call: _Call | None = None
        self._status: CallStatus | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls can be sent; else the next one opens a stream."""
        return self._call is not None and not self._call.done()

    async def prepare(self, call: sampler_pb2.PredictCall, share: Share) -> None:
        """Bring the call, and the tensors that the member lacks, until it is ready."""
        message = await self._bring(call, share, at_once=False)
        if message.HasField("error"):
            # Nobody has started: raising keeps every member out of the collective.
            raise from_status_bytes(message.error.status)

    async def compute(self) -> Answer:
        """Start, and read the answer."""
        assert self._call is not None
        await self._write(self._call, node_pb2.PredictStepRequest(start=node_pb2.StartRun()))
        return await self._answer(await self._read(self._call, "result", "error"))

    async def whole(self, call: sampler_pb2.PredictCall, share: Share) -> Answer:
        """As `prepare` and `compute`, for a member that has no others to wait for."""
        message = await self._bring(call, share, at_once=True)
        return await (self.compute() if message.HasField("ready") else self._answer(message))

    async def _bring(
        self, call: sampler_pb2.PredictCall, share: Share, *, at_once: bool
    ) -> node_pb2.PredictStepResponse:
        """Send a call with all that belongs to it; the first answer that is no question."""
        if self._call is None or self._call.done():
            # Not opened yet, or ended since the last call, as when the process was restarted.
            self._call = await self._opened()
        context = telemetry.current_span().context
        sees_memory = self._sees_memory and self._link.is_here
        memory = self._memory.message if sees_memory else None
        unasked = count_unhashed(t.spec for t in share.tensors) if memory is None else 0
        request = node_pb2.PredictStepRequest(
            call=call,
            traceparent=context.traceparent if context is not None else "",
            memory=memory,
            at_once=at_once,
        )
        request.call.unasked = unasked
        await self._write(self._call, request)
        await self._send(self._call, share.tensors, range(unasked))
        answer = await self._read(self._call, *_ANSWERS)
        if not answer.HasField("needed"):
            return answer
        # An older node asks for what is on its way as well.
        needed = [index for index in answer.needed.tensors if index >= unasked]
        if memory is not None and not all(share.tensors[index].spec.sha256 for index in needed):
            self._sees_memory = False
        shared = await share.offer(self._link, needed)
        if shared is not None:
            await self._write(self._call, node_pb2.PredictStepRequest(shared=shared))
            answer = await self._read(self._call, *_ANSWERS)
            if not answer.HasField("needed"):
                return answer
            needed = list(answer.needed.tensors)
        await self._send(self._call, share.tensors, needed)
        return await self._read(self._call, *_ANSWERS)

    async def _opened(self) -> _Call:
        call: _Call = self._link.stub.PredictStep()
        self._status = CallStatus(call)
        await self._write(call, node_pb2.PredictStepRequest(open=self._open))
        if self._open.weight_patches:
            needed = (await self._read(call, "needed")).needed
            await self._send(call, self._model.tensors, needed.tensors)
        return call

    async def _send(
        self, call: _Call, tensors: Sequence[WireTensor], needed: Iterable[int]
    ) -> None:
        for message in chunk_messages(node_pb2.PredictStepRequest, tensors, needed):
            await self._write(call, message)

    async def _answer(self, message: node_pb2.PredictStepResponse) -> Answer:
        assert self._call is not None
        if message.HasField("error"):
            return from_status_bytes(message.error.status)
        if not message.result.HasField("output"):
            return None
        specs = read_specs([message.result.output], field="output", max_bytes=_MAX_ANSWER_BYTES)
        if message.written:
            output = self._memory.output[: specs[0].nbytes]
            return WireTensor(specs[0], output if self._memory.is_large else bytes(output))
        receiver = Receiver(specs, field="output")
        while not receiver.complete:
            receiver.feed((await self._read(self._call, "chunk")).chunk)
        return receiver.tensors()[0]

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()

    async def _write(self, call: _Call, message: node_pb2.PredictStepRequest) -> None:
        try:
            await call.write(message)
        except asyncio.InvalidStateError:
            # The stream has ended: reading tells why.
            await self._read(call)
        except grpc.aio.AioRpcError as failure:
            raise await self._told(failure) from failure

    async def _read(self, call: _Call, *expected: str) -> node_pb2.PredictStepResponse:
        try:
            message = await call.read()
        except grpc.aio.AioRpcError as failure:
            raise await self._told(failure) from failure
        got = "the end of the stream"
        if message is not grpc.aio.EOF:
            # A chunk is no object of protobuf's: see `chunk_messages`.
            answer = cast(node_pb2.PredictStepResponse, message)
            got = answer.WhichOneof("message") or "nothing"
            if got in expected:
                return answer
        wanted = " or ".join(expected) or "waiting for more"
        raise InternalError(f"{self._link.address} sent {got} instead of {wanted}")

    async def _told(self, failure: grpc.aio.AioRpcError) -> grpc.RpcError:
        return failure if self._status is None else await self._status.of(failure)
