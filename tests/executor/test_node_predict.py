"""`NodeService.PredictStep` on one executor: single calls, and what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditmesh import errors, telemetry
from ditmesh.rpc_status import from_status_bytes
from ditmesh.shared_memory import Memory
from ditmesh.telemetry import TraceContext
from ditmesh.tensors import WireTensor, as_wire
from ditmesh.v1 import job_pb2, sampler_pb2, tensor_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.chunks import chunks
from tests.executor.node import Node, failure
from tests.models.tiny_flux import GOLDEN


def predict(node: Node, *calls: Any, traceparent: str = "") -> list[Any]:
    """A stream of single calls, each sent whole: (call, tensors)."""
    requests: list[Any] = [
        pb.PredictStepRequest(open=pb.PredictStepOpen(model="tiny")),
    ]
    for call, tensors in calls:
        requests.append(pb.PredictStepRequest(call=call, traceparent=traceparent))
        for index, tensor in enumerate(tensors):
            chunk = tensor_pb2.TensorChunk(tensor=index, data=bytes(tensor.data))
            requests.append(pb.PredictStepRequest(chunk=chunk))
        if call.call_id != 99 and call.unasked <= len(tensors):
            requests.append(pb.PredictStepRequest(start=pb.StartRun()))
    return list(node.stub.PredictStep(iter(requests)))


def _break() -> None:
    raise RuntimeError("out of memory")


def forward_call(call_id: int = 1) -> tuple[sampler_pb2.PredictCall, list[WireTensor], Any]:
    from safetensors.torch import load_file

    given = load_file(GOLDEN / "flux_forward.safetensors")
    tensors = [as_wire(given[name]) for name in ("x", "context", "pooled")]
    call = sampler_pb2.PredictCall(
        call_id=call_id,
        tensors=[t.spec.to_proto() for t in tensors],
        x=0,
        timestep=given["sigma"].tolist(),
        conditioning=job_pb2.Conditioning(text=1, pooled=2, guidance=given["guidance"].tolist()),
    )
    return call, tensors, given["velocity"]


def test_a_single_call_belongs_to_its_own_trace(node: Node, tmp_path: Path) -> None:
    """Its stream outlives many: the call itself says which."""
    spans = tmp_path / "spans.jsonl"
    call, tensors, _ = forward_call()
    trace = TraceContext.new_root()
    telemetry.setup(telemetry.TelemetryConfig("node", exporters=("file",), trace_file=spans))
    try:
        predict(node, (call, tensors), traceparent=trace.traceparent)
        predict(node, (call, tensors))
    finally:
        telemetry.shutdown()
    (span,) = map(json.loads, spans.read_text().splitlines())
    assert span["name"] == "ditmesh.v1.NodeService/PredictStep"
    assert span["trace_id"] == f"{trace.trace_id:032x}"


def test_a_single_call_gives_comfyuis_velocity(node: Node) -> None:
    """Raw output of the transformer, of x's shape and type."""
    call, tensors, velocity = forward_call()
    _, ready, result, *pieces = predict(node, (call, tensors))
    assert ready.HasField("ready")
    assert result.result.call_id == 1
    data = b"".join(bytes(p.chunk.data) for p in pieces)
    got = np.frombuffer(data, np.float32).reshape(velocity.shape)
    assert np.abs(got - velocity.numpy()).max() < 1e-5


@pytest.mark.parametrize("seen", [True, False])
def test_a_call_is_read_from_memory_and_its_output_written_there(node: Node, seen: bool) -> None:
    """One message leads to one answer. What cannot be read is asked for, and what cannot be
    written is sent.
    """
    call, tensors, velocity = forward_call()
    with Memory() as memory:
        places = [
            tensor_pb2.SharedTensor(tensor=index, offset=memory.add(tensor))
            for index, tensor in enumerate(tensors)
        ]
        nbytes = tensors[0].spec.nbytes
        room = memory.leave_room(nbytes)
        shared = tensor_pb2.SharedTensors(
            pid=os.getpid(),
            fd=memory.fd,
            token=memory.token if seen else bytes(16),
            tensors=places,
        )
        requests = [
            pb.PredictStepRequest(open=pb.PredictStepOpen(model="tiny")),
            pb.PredictStepRequest(
                call=call, memory=tensor_pb2.CallMemory(tensors=shared, output=room), at_once=True
            ),
        ]
        if not seen:
            requests += [pb.PredictStepRequest(chunk=c) for c in chunks(tensors, (0, 1, 2))]
        answers = list(node.stub.PredictStep(iter(requests)))
        data = bytes(memory.map()[room : room + nbytes])
    if not seen:
        needed, *answers = answers
        assert list(needed.needed.tensors) == [0, 1, 2]
        data = b"".join(bytes(answer.chunk.data) for answer in answers[1:])
        del answers[1:]
    (result,) = answers
    assert result.result.call_id == 1
    assert result.written == seen
    got = np.frombuffer(data, np.float32).reshape(velocity.shape)
    assert np.abs(got - velocity.numpy()).max() < 1e-5


def test_a_tensor_that_is_not_wholly_in_memory_is_refused(node: Node) -> None:
    """It is not taken to be shorter; the call is answered with its error."""
    call, tensors, _ = forward_call()
    with Memory() as memory:
        at = memory.add(tensors[0])
        shared = tensor_pb2.SharedTensors(pid=os.getpid(), fd=memory.fd, token=memory.token)
        shared.tensors.add(tensor=0, offset=memory.nbytes - 4)
        requests = [
            pb.PredictStepRequest(open=pb.PredictStepOpen(model="tiny")),
            pb.PredictStepRequest(
                call=call, memory=tensor_pb2.CallMemory(tensors=shared, output=at), at_once=True
            ),
        ]
        (answer,) = node.stub.PredictStep(iter(requests))
    assert isinstance(from_status_bytes(answer.error.status), errors.InvalidTensor)


def test_what_follows_a_call_unasked_is_not_asked_for(node: Node) -> None:
    """Nor is it in the way of the next call when its own is refused."""
    call, tensors, _ = forward_call(2)
    call.unasked = 3
    wrong = sampler_pb2.PredictCall()
    wrong.CopyFrom(call)
    wrong.call_id, wrong.unasked = 1, 4
    error, ready, result, *_ = predict(node, (wrong, tensors), (call, tensors))
    assert isinstance(from_status_bytes(error.error.status), errors.InvalidRequest)
    assert ready.HasField("ready")
    assert result.result.call_id == 2


def test_a_call_that_is_wrong_does_not_end_the_stream(node: Node) -> None:
    """It is answered with its error, the next one with its output."""
    call, tensors, _ = forward_call(2)
    wrong = sampler_pb2.PredictCall()
    wrong.CopyFrom(call)
    wrong.call_id = 1
    wrong.conditioning.extra["odd"] = 1
    answers = predict(node, (wrong, tensors), (call, tensors))
    (error,) = [a.error for a in answers if a.HasField("error")]
    assert error.call_id == 1
    assert isinstance(from_status_bytes(error.status), errors.InvalidRequest)
    assert [a.result.call_id for a in answers if a.HasField("result")] == [2]


def test_a_call_that_breaks_ends_the_stream_for_another_executor(node: Node) -> None:
    """A collective may be broken for good: INTERNAL, to go on elsewhere."""
    node.before.append(_break)
    call, tensors, _ = forward_call()
    assert type(failure(lambda: predict(node, (call, tensors)))) is errors.ExecutorFailed


def test_more_bytes_than_the_limit_are_refused_before_they_come(node: Node) -> None:
    """And not when they have come."""
    large = tensor_pb2.TensorSpec(data_type="DATA_TYPE_F32", shape=[1 << 20])
    call = sampler_pb2.PredictCall(call_id=99, tensors=[large])
    (answer,) = predict(node, (call, []))
    assert isinstance(from_status_bytes(answer.error.status), errors.LimitExceeded)


def test_a_model_that_cannot_be_loaded_keeps_the_others_from_beginning(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is answered before anybody is ready, and the group stays whole."""
    engine, aborted = node.servicer._engine, []

    def damaged(*args: Any) -> Any:
        raise errors.DamagedModel("tiny: the file ends early")

    monkeypatch.setattr(engine, "model", damaged)
    monkeypatch.setattr(engine.cache, "holds", lambda *args: False)
    monkeypatch.setattr(engine, "abort", lambda: aborted.append(True))
    call, tensors, _ = forward_call(99)
    (answer,) = [a for a in predict(node, (call, tensors)) if not a.HasField("needed")]
    assert isinstance(from_status_bytes(answer.error.status), errors.DamagedModel)
    assert not aborted


def test_a_call_of_a_group_that_has_gone_is_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream was opened in time; the model is not asked, in another group least of all."""
    asked: list[bool] = []
    opened = iter([True])

    def require(epoch: int, mesh: int) -> None:
        if not next(opened, False):
            raise errors.StaleEpoch("this node is in epoch 2, not 1")

    monkeypatch.setattr(node.servicer._engine, "require", require)
    node.before.append(lambda: asked.append(True))
    call, tensors, _ = forward_call()
    (error,) = [a.error for a in predict(node, (call, tensors)) if a.HasField("error")]
    assert isinstance(from_status_bytes(error.status), errors.StaleEpoch)
    assert not asked


def test_a_rank_that_fails_alone_breaks_the_group(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it in the call's collectives; what all find alike breaks nothing."""
    aborted: list[bool] = []
    monkeypatch.setattr(node.servicer._engine, "abort", lambda: aborted.append(True))
    call, tensors, _ = forward_call()
    predict(node, (call, tensors))
    wrong = sampler_pb2.PredictCall()
    wrong.CopyFrom(call)
    wrong.conditioning.extra["odd"] = 1
    predict(node, (wrong, tensors))
    assert not aborted
    node.before.append(_break)
    assert type(failure(lambda: predict(node, (call, tensors)))) is errors.ExecutorFailed
    assert aborted == [True]
