"""A run's result: written to the coordinator's memory where that is to be had, else in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ditmesh.exchange import Receiver, read_specs
from ditmesh.jobs import Job
from ditmesh.output_rooms import OutputRoom, OutputRooms
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import node_pb2 as pb
from ditmesh.v1 import tensor_pb2
from tests.chunks import chunks
from tests.executor.node import Node, Stream, golden_job

NAME = "flux_ipndm_simple_n8_cfg1_d1_b1_16x16"
NBYTES = 16 * 16 * 16 * 4


@pytest.fixture
def room() -> Iterator[OutputRoom]:
    """Room for the latent."""
    room = OutputRooms().take(NBYTES)
    assert room is not None
    yield room
    room.close()


def answers(
    node: Node, job: Job, memory: tensor_pb2.CallMemory | None, *, at_once: bool = False
) -> list[pb.RunResponse]:
    """All that follows the last step of a run."""
    stream = Stream(node.stub)
    stream.send(job=pb.RunJob(job=job.spec), memory=memory, at_once=at_once)
    for chunk in chunks(job.tensors, next(stream.call).needed.tensors):
        stream.send(chunk=chunk)
    assert next(stream.call).ready.begun == at_once
    if not at_once:
        stream.send(start=pb.StartRun())
    try:
        messages = list(stream.call)
    finally:
        stream.end()
    kinds = [message.WhichOneof("message") for message in messages]
    return messages[kinds.index("result") :] if "result" in kinds else messages


def tensors(messages: list[pb.RunResponse], latent: bytes | None = None) -> tuple[WireTensor, ...]:
    """Those of a result and its pieces; the latent, if it was written, from where it is."""
    result = messages[0].result
    specs = read_specs(result.tensors, field="t", max_bytes=1 << 30)
    receiver = Receiver(specs, field="t")
    if latent is not None:
        receiver.place({result.latent: latent})
    for message in messages[1:]:
        if message.HasField("chunk"):
            receiver.feed(message.chunk)
    return receiver.tensors()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_result_that_is_written_is_one_message(
    node: Node, room: OutputRoom, at_once: bool
) -> None:
    """With the end of the run in it; the bits are those that come in pieces."""
    (message,) = answers(node, golden_job(NAME), room.message, at_once=at_once)
    assert message.written
    assert message.ended.stopped == pb.STOP_REASON_UNSPECIFIED
    assert message.ended.seconds > 0
    (written,) = tensors([message], bytes(room.read()))
    assert torch.equal(to_torch(written), node.run(golden_job(NAME)).latent)


def test_without_memory_a_result_comes_in_pieces(node: Node) -> None:
    """And the end of the run after it, as coordinators from before know it."""
    messages = answers(node, golden_job(NAME), None)
    assert [m.WhichOneof("message") for m in messages] == ["result", "chunk", "done"]
    assert messages[0] == pb.RunResponse(result=messages[0].result)


def too_small(memory: tensor_pb2.CallMemory) -> None:
    memory.output += 1


def gone(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.pid = 0


def another(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.token = bytes(16)


@pytest.mark.parametrize("lie", [too_small, gone, another])
def test_where_there_is_no_room_a_result_comes_in_pieces(
    node: Node, room: OutputRoom, lie: Callable[[tensor_pb2.CallMemory], None]
) -> None:
    """Whatever the order said; nothing was written."""
    memory = room.message
    lie(memory)
    messages = answers(node, golden_job(NAME), memory)
    assert [m.WhichOneof("message") for m in messages] == ["result", "chunk", "done"]
    assert not messages[0].written
    assert not messages[0].HasField("ended")
    assert bytes(room.read()) == bytes(NBYTES)
    (latent,) = tensors(messages)
    assert torch.equal(to_torch(latent), node.run(golden_job(NAME)).latent)


def test_a_state_comes_in_pieces_beside_a_latent_that_is_written(
    node: Node, room: OutputRoom
) -> None:
    """Every tensor of it, and the end of the run after it."""
    job = golden_job(NAME, return_state=True, stop_after_step=5)
    messages = answers(node, job, room.message)
    assert messages[0].written
    assert not messages[0].HasField("ended")
    assert messages[-1].HasField("done")
    assert {m.chunk.tensor for m in messages[1:-1]} == set(
        range(1, len(messages[0].result.tensors))
    )
    whole = node.run(job)
    assert tensors(messages, bytes(room.read())) == whole.tensors
    assert whole.result is not None
    assert messages[0].result == whole.result


def test_a_run_that_is_stopped_writes_nothing(node: Node, room: OutputRoom) -> None:
    """It has no result: its state goes along, and the end as always."""
    stream = Stream(node.stub)
    job = golden_job(NAME)
    stream.send(job=pb.RunJob(job=job.spec, deadline_seconds=0.0), memory=room.message)
    for chunk in chunks(job.tensors, next(stream.call).needed.tensors):
        stream.send(chunk=chunk)
    assert next(stream.call).HasField("ready")
    stream.send(start=pb.StartRun())
    *_, last = stream.call
    stream.end()
    assert last.done.stopped == pb.STOP_REASON_DEADLINE
    assert bytes(room.read()) == bytes(NBYTES)
