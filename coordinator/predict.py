"""Streams kept open to the members of an executor, for single transformer calls."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import grpc.aio

from coordinator.nodes import NodeLink
from coordinator.sharing import Share
from ditmesh import telemetry
from ditmesh.aio_status import CallStatus
from ditmesh.chunk_messages import chunk_messages
from ditmesh.errors import DitmeshError, InternalError
from ditmesh.exchange import Receiver, read_specs
from ditmesh.rpc_status import from_status_bytes
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, node_pb2, sampler_pb2, tensor_pb2

_Call = grpc.aio.StreamStreamCall[node_pb2.PredictStepRequest, node_pb2.PredictStepResponse]
Answer = WireTensor | DitmeshError | None
"""The output (leader), the error of this call, or nothing (the other members)."""

_MAX_ANSWER_BYTES = 4 << 30


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
    """One `PredictStep` stream to each member. Each method gives one coroutine a member."""

    def __init__(
        self, members: Sequence[NodeLink], epoch: int, mesh_index: int, model: PatchedModel
    ) -> None:
        self._model = model
        self._open = node_pb2.PredictStepOpen(
            epoch=epoch,
            mesh=mesh_index,
            model=model.name,
            weight_patches=model.patches,
            tensors=[tensor.spec.to_proto() for tensor in model.tensors],
        )
        self._members = [_MemberLane(link) for link in members]

    def prepare(
        self, call: sampler_pb2.PredictCall, share: Share
    ) -> list[Coroutine[Any, Any, None]]:
        """Bring the call, and the tensors that a member lacks, until it is ready."""
        opening = (self._open, self._model.tensors)
        return [member.prepare(*opening, call, share) for member in self._members]

    def compute(self) -> list[Coroutine[Any, Any, Answer]]:
        """Start, and read the answer."""
        return [member.compute() for member in self._members]

    def close(self) -> None:
        """End the streams."""
        for member in self._members:
            member.close()


class _MemberLane:
    def __init__(self, link: NodeLink) -> None:
        self._link = link
        self._call: _Call | None = None
        self._status: CallStatus | None = None

    async def prepare(
        self,
        opened: node_pb2.PredictStepOpen,
        patch_tensors: Sequence[WireTensor],
        call: sampler_pb2.PredictCall,
        share: Share,
    ) -> None:
        if self._call is None or self._call.done():
            # Not opened yet, or ended since the last call, as when the process was restarted.
            self._call = self._link.stub.PredictStep()
            self._status = CallStatus(self._call)
            await self._write(self._call, node_pb2.PredictStepRequest(open=opened))
            if opened.weight_patches:
                needed = (await self._read(self._call, "needed")).needed
                await self._send(self._call, patch_tensors, needed)
        context = telemetry.current_span().context
        request = node_pb2.PredictStepRequest(
            call=call, traceparent=context.traceparent if context is not None else ""
        )
        await self._write(self._call, request)
        answer = await self._read(self._call, "needed", "error")
        if answer.HasField("needed"):
            shared = await share.offer(self._link, answer.needed.tensors)
            if shared is not None:
                await self._write(self._call, node_pb2.PredictStepRequest(shared=shared))
                answer = await self._read(self._call, "needed", "ready", "error")
        if answer.HasField("needed"):
            await self._send(self._call, share.tensors, answer.needed)
            answer = await self._read(self._call, "ready", "error")
        if answer.HasField("error"):
            # Nobody has started: raising keeps every member out of the collective.
            raise from_status_bytes(answer.error.status)

    async def _send(
        self, call: _Call, tensors: Sequence[WireTensor], needed: tensor_pb2.TensorsNeeded
    ) -> None:
        for message in chunk_messages(node_pb2.PredictStepRequest, tensors, needed.tensors):
            await self._write(call, message)

    async def compute(self) -> Answer:
        assert self._call is not None
        await self._write(self._call, node_pb2.PredictStepRequest(start=node_pb2.StartRun()))
        message = await self._read(self._call, "result", "error")
        if message.HasField("error"):
            return from_status_bytes(message.error.status)
        if not message.result.HasField("output"):
            return None
        specs = read_specs([message.result.output], field="output", max_bytes=_MAX_ANSWER_BYTES)
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
