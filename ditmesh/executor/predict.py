"""Single transformer calls on an executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor as ThreadPool
from contextlib import AbstractContextManager, nullcontext

import torch

from ditmesh import telemetry
from ditmesh.attached_memory import AttachedMemory
from ditmesh.chunk_messages import chunk_messages
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, ExecutorFailed, ProtocolError
from ditmesh.executor.engine import Engine, all_or_none
from ditmesh.executor.inputs import TensorReader, conditioning
from ditmesh.executor.receiving import asking, receive
from ditmesh.executor.weight_patches import patch_set
from ditmesh.models.patches import PatchSet
from ditmesh.rpc_status import to_status_bytes
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import borrowed, from_torch, write_torch
from ditmesh.v1 import node_pb2, sampler_pb2, tensor_pb2

_Requests = Iterator[node_pb2.PredictStepRequest]
_Responses = Iterator[node_pb2.PredictStepResponse]


def _traced(request: node_pb2.PredictStepRequest) -> AbstractContextManager[object]:
    """A span around a call, if it belongs to a trace."""
    if not request.traceparent:
        return nullcontext()
    metadata = [("traceparent", request.traceparent)]
    call_id = request.call.call_id
    return telemetry.server_span("ditmesh.v1.NodeService/PredictStep", metadata, call_id=call_id)


class PredictSession:
    """Drives `NodeService.PredictStep`."""

    def __init__(
        self,
        engine: Engine,
        torch_thread: ThreadPool,
        store: ContentStore,
        *,
        max_bytes: int,
    ) -> None:
        self._engine = engine
        self._torch_thread = torch_thread
        self._store = store
        self._max_bytes = max_bytes
        self._patches: PatchSet | None = None
        self._kept: dict[bytes, torch.Tensor] = {}
        self._attached = AttachedMemory()

    def serve(self, requests: _Requests) -> _Responses:
        """Answer one stream. A call that fails is answered with its error, but for failures
        of the executor itself: these end the stream.
        """
        first = next(requests, None)
        if first is None or first.WhichOneof("message") != "open":
            raise ProtocolError("the first message of PredictStep must be open", field="open")
        opened = first.open
        self._engine.require(opened.epoch, opened.mesh)
        if opened.weight_patches:
            receiving = receive(
                opened.tensors,
                requests,
                field="open.tensors",
                store=self._store,
                max_bytes=self._max_bytes,
            )
            tensors = yield from asking(receiving, _needed)
            self._patches = patch_set(opened.weight_patches, tensors)
        failed = False
        for request in requests:
            kind = request.WhichOneof("message")
            if kind == "chunk" and failed:
                # Of the call that failed: its sender could not know yet.
                continue
            if kind != "call":
                raise ProtocolError("expected a call")
            failed = False
            try:
                with _traced(request):
                    yield from self._answer(request, opened, requests)
            except ExecutorFailed:
                raise
            except DitmeshError as error:
                failed = True
                failure = sampler_pb2.CallError(
                    call_id=request.call.call_id, status=to_status_bytes(error)
                )
                yield node_pb2.PredictStepResponse(error=failure)

    def _answer(
        self,
        request: node_pb2.PredictStepRequest,
        opened: node_pb2.PredictStepOpen,
        requests: _Requests,
    ) -> _Responses:
        call = request.call
        memory = self._attached.of(request.memory) if request.HasField("memory") else None
        receiving = receive(
            call.tensors,
            requests,
            field="call.tensors",
            store=self._store,
            max_bytes=self._max_bytes,
            unasked=call.unasked,
            mapped=memory.tensors if memory is not None else None,
        )
        tensors = yield from asking(receiving, _needed)
        self._load(opened)
        if not request.at_once:
            yield node_pb2.PredictStepResponse(ready=node_pb2.RunReady())
            start = next(requests, None)
            if start is None or start.WhichOneof("message") != "start":
                raise ProtocolError("expected start")
        place = memory.output if memory is not None else memoryview(b"")
        future = self._torch_thread.submit(self._compute, call, tensors, opened, place)
        output = future.result()
        result = sampler_pb2.PredictResult(call_id=call.call_id)
        if output is None:
            yield node_pb2.PredictStepResponse(result=result)
            return
        result.output.CopyFrom(output.spec.to_proto())
        if isinstance(output.data, memoryview):
            yield node_pb2.PredictStepResponse(result=result, written=True)
            return
        yield node_pb2.PredictStepResponse(result=result)
        yield from chunk_messages(node_pb2.PredictStepResponse, [output], [0])

    def _load(self, opened: node_pb2.PredictStepOpen) -> None:
        """Before the others begin: what fails here fails without them."""
        name, mesh = opened.model, opened.mesh
        if not self._engine.cache.holds(name, self._patches):
            self._torch_thread.submit(self._engine.model, name, mesh, self._patches).result()

    def _compute(
        self,
        call: sampler_pb2.PredictCall,
        tensors: tuple[WireTensor, ...],
        opened: node_pb2.PredictStepOpen,
        place: memoryview,
    ) -> WireTensor | None:
        """The output, in `place` if it is as large as x and has room there; None: another rank
        answers.
        """
        # The group may have gone since the stream was opened: another's collectives are not its.
        self._engine.require(opened.epoch, opened.mesh)
        try:
            with all_or_none(self._engine):
                model = self._engine.model(opened.model, opened.mesh, self._patches)
                reader = TensorReader(tensors, model.device, self._kept)
                # The memory is the next call's only once all ranks have answered this one.
                x = borrowed(tensors[call.x], model.device)
                timestep = torch.tensor(
                    list(call.timestep), dtype=torch.float32, device=model.device
                )
                cond = conditioning(call.conditioning, reader)
                # Step after step has the same conditioning.
                self._kept = reader.by_hash()
                output = model.predict(x, timestep, cond)
        except DitmeshError:
            raise
        except Exception as error:
            # A collective that broke, or memory that ran out: another executor may do better.
            raise ExecutorFailed(f"{type(error).__name__}: {error}") from error
        if not self._engine.leads(opened.mesh):
            return None
        if output.shape == x.shape and x.nbytes <= len(place):
            return write_torch(output, x.dtype, place)
        return from_torch(output.to(x.dtype))


def _needed(needed: tensor_pb2.TensorsNeeded) -> node_pb2.PredictStepResponse:
    return node_pb2.PredictStepResponse(needed=needed)
