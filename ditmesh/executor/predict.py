"""Single transformer calls on an executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor as ThreadPool

import torch

from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError, ExecutorFailed, ProtocolError
from ditmesh.exchange import Receiver, chunks, read_specs
from ditmesh.executor.engine import Engine
from ditmesh.executor.inputs import conditioning, tensor_reader
from ditmesh.rpc_status import as_ditmesh_error, to_status_bytes
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import from_torch
from ditmesh.v1 import node_pb2, sampler_pb2, tensor_pb2

_Requests = Iterator[node_pb2.PredictStepRequest]
_Responses = Iterator[node_pb2.PredictStepResponse]


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

    def serve(self, requests: _Requests) -> _Responses:
        """Answer one stream. A call that fails is answered with its error, but for failures
        of the executor itself: these end the stream.
        """
        first = next(requests, None)
        if first is None or first.WhichOneof("message") != "open":
            raise ProtocolError("the first message of PredictStep must be open", field="open")
        self._engine.require(first.open.epoch, first.open.mesh)
        for request in requests:
            if request.WhichOneof("message") != "call":
                raise ProtocolError("expected a call")
            try:
                yield from self._answer(request.call, first.open, requests)
            except ExecutorFailed:
                raise
            except DitmeshError as error:
                failure = sampler_pb2.CallError(
                    call_id=request.call.call_id, status=to_status_bytes(error)
                )
                yield node_pb2.PredictStepResponse(error=failure)

    def _answer(
        self,
        call: sampler_pb2.PredictCall,
        opened: node_pb2.PredictStepOpen,
        requests: _Requests,
    ) -> _Responses:
        specs = read_specs(call.tensors, field="call.tensors", max_bytes=self._max_bytes)
        receiver = Receiver(specs, field="call.tensors", store=self._store)
        needed = tensor_pb2.TensorsNeeded(tensors=receiver.needed)
        yield node_pb2.PredictStepResponse(needed=needed)
        while not receiver.complete:
            request = next(requests, None)
            if request is None or request.WhichOneof("message") != "chunk":
                raise ProtocolError("expected a chunk of the call's tensors")
            receiver.feed(request.chunk)
        yield node_pb2.PredictStepResponse(ready=node_pb2.RunReady())
        request = next(requests, None)
        if request is None or request.WhichOneof("message") != "start":
            raise ProtocolError("expected start")
        future = self._torch_thread.submit(
            self._compute, call, receiver.tensors(), opened.model, opened.mesh
        )
        output = future.result()
        result = sampler_pb2.PredictResult(call_id=call.call_id)
        if not self._engine.leads(opened.mesh):
            yield node_pb2.PredictStepResponse(result=result)
            return
        result.output.CopyFrom(output.spec.to_proto())
        yield node_pb2.PredictStepResponse(result=result)
        for chunk in chunks([output], [0]):
            yield node_pb2.PredictStepResponse(chunk=chunk)

    def _compute(
        self,
        call: sampler_pb2.PredictCall,
        tensors: tuple[WireTensor, ...],
        name: str,
        mesh: int,
    ) -> WireTensor:
        model = self._engine.model(name, mesh)
        reader = tensor_reader(tensors, model.device)
        x = reader[call.x]
        timestep = torch.tensor(list(call.timestep), dtype=torch.float32, device=model.device)
        try:
            output = model.predict(x, timestep, conditioning(call.conditioning, reader))
        except Exception as error:
            raise as_ditmesh_error(error) from error
        return from_torch(output.to(x.dtype))
