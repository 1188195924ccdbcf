"""Single transformer calls: each claims an executor, like a job of one step."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from coordinator.cluster.cluster import Cluster
from coordinator.config import Limits
from coordinator.executors.predict_lane import PatchedModel
from coordinator.jobs import checks
from coordinator.jobs.checks import POLICIES
from coordinator.jobs.scheduler import Claim, Scheduler
from coordinator.lifecycle.ladder import Policy
from coordinator.services import client_memory
from coordinator.services.client_memory import ClientMemory
from coordinator.services.streams import read
from ditmesh import telemetry
from ditmesh.chunk_messages import chunk_messages
from ditmesh.content import ContentStore
from ditmesh.errors import (
    BadResult,
    DeadlineExceeded,
    DitmeshError,
    ExecutorFailed,
    GroupLost,
    InvalidTensor,
    ProtocolError,
)
from ditmesh.exchange import Receiver, read_specs
from ditmesh.rpc_status import to_status_bytes
from ditmesh.tensors import TensorSpec, WireTensor
from ditmesh.v1 import cluster_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb

_MAX_ATTEMPTS = 3

_Requests = AsyncIterator[pb.PredictRequest]


@dataclass(frozen=True)
class _Stream:
    """What the calls of one client's stream have in common."""

    opened: pb.PredictOpen
    model: PatchedModel
    memory: ClientMemory
    requests: _Requests
    scope: str


class PredictCalls:
    """Serves `SamplerService.Predict`."""

    def __init__(
        self,
        scheduler: Scheduler,
        cluster: Cluster,
        metrics: telemetry.Metrics,
        store: ContentStore,
        limits: Limits,
        reserved: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """`reserved` makes room for so many bytes within a block, as `JobTable.reserved`."""
        self._reserved = reserved
        self._scheduler = scheduler
        self._cluster = cluster
        self._metrics = metrics
        self._store = store
        self._limits = limits

    async def serve(self, requests: _Requests, scope: str) -> AsyncIterator[pb.PredictResponse]:
        """Answer one client's calls, in order. A call that fails does not end the stream."""
        with ExitStack() as held:
            async for response in self._serve(requests, scope, held):
                yield response

    async def _serve(
        self, requests: _Requests, scope: str, held: ExitStack
    ) -> AsyncIterator[pb.PredictResponse]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "open":
            raise ProtocolError("the first message of Predict must be open", field="open")
        opened = first.open
        checks.check_policy(opened.fallback, "open.fallback")
        self._cluster.find_model(opened.model, field="open.model")
        model = PatchedModel(opened.model)
        if opened.weight_patches:
            receiver = self._announced(opened.tensors, "open.tensors", scope)
            table = checks.Table(receiver.specs, "open.tensors")
            checks.check_patches(opened.weight_patches, "open.weight_patches", table)
            held.enter_context(self._reserved(_nbytes(receiver)))
            yield _needed(receiver.needed)
            tensors = await self._receive(receiver, "open.tensors", requests)
            model = PatchedModel(opened.model, tuple(opened.weight_patches), tensors)
        memory = ClientMemory(opened.host)
        held.callback(memory.close)
        stream = _Stream(opened, model, memory, requests, scope)
        failed = False
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "chunk" and failed:
                # Of the call that failed: its sender could not know yet.
                continue
            if kind != "call":
                raise ProtocolError(f"expected a call, got {kind}")
            failed = False
            try:
                async for response in self._answer(request, stream):
                    yield response
            except (ProtocolError, DeadlineExceeded):
                # What follows on the stream can no longer be told apart, or nothing follows.
                raise
            except DitmeshError as error:
                failed = True
                self._metrics.predict_answered(executor="none", outcome=error.reason)
                failure = pb.CallError(call_id=request.call.call_id, status=to_status_bytes(error))
                yield pb.PredictResponse(error=failure)

    async def _answer(
        self, request: pb.PredictRequest, stream: _Stream
    ) -> AsyncIterator[pb.PredictResponse]:
        call, name = request.call, stream.opened.model
        receiver = self._announced(call.tensors, "call.tensors", stream.scope, call.unasked)
        cells = self._check(
            call, self._cluster.find_model(name, field="open.model"), receiver.specs
        )
        # The output is as large as x.
        room = self._reserved(_nbytes(receiver) + receiver.specs[call.x].nbytes)
        with room, telemetry.span("predict", call_id=call.call_id, model=name):
            views = stream.memory.of(request)
            if views is not None:
                await client_memory.take(
                    views, receiver, unasked=call.unasked, field="call.tensors"
                )
            asked = receiver.missing[call.unasked :]
            if asked or not (call.unasked or views is not None):
                yield _needed(asked)
            tensors = await self._receive(receiver, "call.tensors", stream.requests)
            output, executor, reason = await self._compute(call, tensors, stream, cells)
            result = pb.PredictResult(
                call_id=call.call_id,
                output=output.spec.to_proto(),
                executor=executor,
                fallback_reason=reason,
            )
            written = views is not None and await client_memory.give(views, output)
            yield pb.PredictResponse(result=result, shares=stream.memory.is_shared, written=written)
            for message in chunk_messages(pb.PredictResponse, [output], () if written else (0,)):
                yield message

    def _announced(
        self,
        declared: Sequence[tensor_pb2.TensorSpec],
        field: str,
        scope: str,
        unasked: int = 0,
    ) -> Receiver:
        specs = read_specs(declared, field=field, max_bytes=self._limits.request_bytes)
        return Receiver(specs, field=field, store=self._store, scope=scope, unasked=unasked)

    async def _receive(
        self, receiver: Receiver, field: str, requests: _Requests
    ) -> tuple[WireTensor, ...]:
        while not receiver.complete:
            request = await read(requests, self._limits.input_timeout_s)
            if request is None or request.WhichOneof("message") != "chunk":
                raise ProtocolError(f"expected a chunk of {field}")
            receiver.feed(request.chunk)
        tensors = receiver.tensors()
        for i, tensor in enumerate(tensors):
            if not tensor.all_finite():
                raise InvalidTensor(
                    f"{field}[{i}] has values that are NaN or infinite", field=f"{field}[{i}]"
                )
        return tensors

    def _check(
        self, call: pb.PredictCall, model: cluster_pb2.Model, specs: tuple[TensorSpec, ...]
    ) -> int:
        """Check the call's header; returns the latent cells of its batch."""
        table = checks.Table(specs, "call.tensors")
        shape = checks.latent_tensor(table.get(call.x, "call.x"), "call.x", model, self._limits)
        if shape[1] != model.latent_channels:
            raise InvalidTensor(
                f"x has {shape[1]} channels, the model {model.latent_channels}", field="call.x"
            )
        checks.check_timestep(call.timestep, shape[0])
        checks.check_branch(
            call.conditioning, "call.conditioning", table, model, shape[0], self._limits
        )
        return shape[0] * shape[2] * shape[3]

    async def _compute(
        self,
        call: pb.PredictCall,
        tensors: tuple[WireTensor, ...],
        stream: _Stream,
        cells: int,
    ) -> tuple[WireTensor, str, str]:
        """The output, who made it, and why it was not the group if it was not."""
        opened = stream.opened
        excluded, attempt = "", 0
        while True:
            attempt += 1
            claim = Claim(
                model=opened.model,
                policy=POLICIES[opened.fallback],
                cells=cells,
                steps_left=1,
                group_excluded=excluded,
            )
            grant = await self._scheduler.acquire(claim, first=attempt > 1)
            started = time.monotonic()
            try:
                with telemetry.span("run", executor=grant.executor.name, attempt=attempt):
                    output = await grant.executor.predict(stream.model, call, tensors)
            except ExecutorFailed as error:
                if attempt == _MAX_ATTEMPTS:
                    raise
                if grant.executor.name == "local":
                    self._cluster.local_failed(error.message)
                elif isinstance(error, GroupLost):
                    self._cluster.group_failed(grant.executor, str(error))
                    excluded = error.reason if attempt > 1 else ""
                else:
                    excluded = error.reason
                continue
            finally:
                self._scheduler.release(grant)
            if not output.all_finite():
                raise BadResult("the transformer's output is not finite")
            name = grant.executor.name
            self._metrics.step_done(executor=name, seconds=time.monotonic() - started)
            self._metrics.predict_answered(executor=name, outcome="OK")
            self._note(grant.decision.reason, name, opened)
            return output, name, grant.decision.reason

    def _note(self, reason: str, executor: str, opened: pb.PredictOpen) -> None:
        if reason and POLICIES[opened.fallback] is not Policy.LOCAL_ONLY:
            self._metrics.fell_back(reason=reason, source="group", target=executor)
            telemetry.add_event("fallback", reason=reason, target=executor)


def _nbytes(receiver: Receiver) -> int:
    return sum(spec.nbytes for spec in receiver.specs)


def _needed(indices: Sequence[int]) -> pb.PredictResponse:
    return pb.PredictResponse(needed=tensor_pb2.TensorsNeeded(tensors=indices))
