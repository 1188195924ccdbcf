"""How a job's inputs come to an executor."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from ditmesh import errors, shared_memory
from ditmesh.content import ContentStore
from ditmesh.jobs import Job
from ditmesh.memory_pool import MemoryPool
from ditmesh.shared_memory import Memory
from ditmesh.tensors import as_wire
from ditmesh.v1 import node_pb2 as pb
from ditmesh.v1 import tensor_pb2
from tests.chunks import chunks
from tests.executor.node import Node, Stream, failure, golden_job, until
from tests.sampling.golden_cases import load_golden


def test_tensors_with_a_hash_are_asked_for_once(node: Node) -> None:
    """The second job with the same conditioning sends none of it."""
    job = golden_job()
    node.run(job)
    assert node.run(job).asked == []


def test_tensors_in_shared_memory_are_read_or_asked_for_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory the job gives the same bits; from memory that is not there it is sent them."""
    # The text is mapped then.
    monkeypatch.setattr(shared_memory, "MAPPED_FROM_BYTES", 1 << 16)
    text = as_wire(np.random.default_rng(5).standard_normal((1, 300, 64), np.float32)).hashed()
    alone = golden_job()
    tensors = (text, *alone.tensors[1:])
    alone.spec.tensors[0].CopyFrom(text.spec.to_proto())
    job = Job(alone.spec, tensors)

    def shared(memory: Memory, token: bytes) -> Any:
        stream = Stream(node.stub)
        stream.send(job=pb.RunJob(job=job.spec))
        places = [
            tensor_pb2.SharedTensor(tensor=i, offset=memory.add(tensors[i]))
            for i in next(stream.call).needed.tensors
        ]
        memory.publish()
        place = {"pid": os.getpid(), "fd": memory.fd, "token": token, "tensors": places}
        stream.send(shared=tensor_pb2.SharedTensors(**place))
        return stream

    with Memory() as memory:
        stream = shared(memory, bytes(16))
        needed = list(next(stream.call).needed.tensors)
        assert 0 in needed
        for chunk in chunks(tensors, needed):
            stream.send(chunk=chunk)
        assert next(stream.call).HasField("ready")
        stream.end()
        node.servicer._store = ContentStore(1 << 28)
        stream = shared(memory, memory.token)
        assert next(stream.call).HasField("ready")
    stream.send(start=pb.StartRun())
    latent = stream.follow().latent
    stream.end()
    assert torch.equal(latent, node.run(job).latent)


def offered(memory: Memory, job: Job, indices: Sequence[int]) -> pb.RunRequest:
    """A job that says where to read these tensors."""
    places = [tensor_pb2.SharedTensor(tensor=i, offset=memory.add(job.tensors[i])) for i in indices]
    memory.publish()
    shared = tensor_pb2.SharedTensors(
        pid=os.getpid(), fd=memory.fd, token=memory.token, tensors=places
    )
    return pb.RunRequest(job=pb.RunJob(job=job.spec), offered=shared)


def test_a_job_that_says_where_its_tensors_are_leads_to_no_question(node: Node) -> None:
    """But for what else is missing; and what cannot be read is asked for like anything."""
    job = golden_job()
    everything = range(len(job.tensors))
    for given, needed in ((everything, []), (everything[1:], [0])):
        node.servicer._store = ContentStore(1 << 28)
        with Memory() as memory:
            stream = Stream(node.stub)
            stream._queue.put(offered(memory, job, given))
            if needed:
                assert next(stream.call).needed.tensors == needed
                for chunk in chunks(job.tensors, needed):
                    stream.send(chunk=chunk)
            assert next(stream.call).HasField("ready")
        stream.send(start=pb.StartRun())
        latent = stream.follow().latent
        stream.end()
        assert torch.equal(latent, node.run(job).latent)
    node.servicer._store = ContentStore(1 << 28)
    with Memory() as memory:
        stream = Stream(node.stub)
        request = offered(memory, job, everything)
        request.offered.token = bytes(16)
        stream._queue.put(request)
        assert next(stream.call).needed.tensors == list(everything)
        stream.end()


def test_what_was_sent_is_passed_on_until_the_start(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is ready a node tells where its neighbours can read what it was sent: those bytes,
    in memory that is its own again afterwards. What it had already, nobody sent.
    """
    node.servicer._store = ContentStore(1 << 28)
    node.servicer._pool = MemoryPool()
    job = golden_job()

    def pass_on() -> tuple[Stream, list[int]]:
        stream = Stream(node.stub)
        stream._queue.put(pb.RunRequest(job=pb.RunJob(job=job.spec), pass_on=True))
        needed = list(next(stream.call).needed.tensors)
        for chunk in chunks(job.tensors, needed):
            stream.send(chunk=chunk)
        return stream, needed

    stream, needed = pass_on()
    passed = next(stream.call).passed
    assert [place.tensor for place in passed.tensors] == needed == [0, 1]
    places = [(place.offset, job.tensors[place.tensor].spec.nbytes) for place in passed.tensors]
    found = shared_memory.read(passed.pid, passed.fd, passed.token, places)
    assert [bytes(data) for data in found] == [bytes(tensor.data) for tensor in job.tensors]
    assert next(stream.call).HasField("ready")
    assert not node.servicer._pool._given
    stream.send(start=pb.StartRun())
    assert stream.follow().result is not None
    stream.end()
    assert len(node.servicer._pool._given) == 1

    again, needed = pass_on()
    assert needed == []
    assert next(again.call).HasField("ready")
    again.end()

    def full(*args: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Memory, "add", full)
    node.servicer._store = ContentStore(1 << 28)
    without, needed = pass_on()
    assert needed == [0, 1]
    answer = next(without.call)
    assert answer.HasField("passed")
    assert not answer.passed.tensors
    assert next(without.call).HasField("ready")
    without.end()


def test_a_job_that_is_given_up_before_its_start_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs may be memory that others wait for: not even until garbage is collected."""
    monkeypatch.setattr(shared_memory, "MAPPED_FROM_BYTES", 1 << 16)
    text = as_wire(np.random.default_rng(5).standard_normal((1, 300, 64), np.float32))
    alone = golden_job()
    alone.spec.tensors[0].CopyFrom(text.spec.to_proto())
    job = Job(alone.spec, (text, *alone.tensors[1:]))
    gc.collect()
    gc.disable()
    try:
        with Memory() as memory:
            stream = Stream(node.stub)
            stream._queue.put(offered(memory, job, range(len(job.tensors))))
            assert next(stream.call).HasField("ready")
            assert memory.is_read
            stream.call.cancel()
            until(lambda: not memory.is_read)
    finally:
        gc.enable()


def test_the_next_job_gets_its_inputs_beside_one_that_runs(node: Node) -> None:
    """It is ready while the other computes, waits for its start alone, and is not mixed up."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go_on.wait(20)

    alone = node.run(golden_job())
    node.before.append(hold)
    first, second = Stream(node.stub), Stream(node.stub)
    first.prepare(golden_job())
    first.send(start=pb.StartRun())
    assert reached.wait(20)
    second.prepare(golden_job("flux_ipndm_simple_n8_cfg1_d1_b1_16x16", job_id="next"))
    go_on.set()
    assert torch.equal(first.follow().latent, alone.latent)
    second.send(start=pb.StartRun())
    case = load_golden("flux_ipndm_simple_n8_cfg1_d1_b1_16x16")
    assert case.difference(second.follow().latent) <= case.tolerance
    first.end()
    second.end()


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "first message"),
        ([pb.RunRequest(start=pb.StartRun())], "first message"),
        (["job", pb.RunRequest(start=pb.StartRun())], "expected a chunk"),
        (["job"], "ended before"),
    ],
)
def test_messages_out_of_order_are_refused(node: Node, requests: list[Any], words: str) -> None:
    """INVALID_ARGUMENT; the next run is not disturbed."""
    job = golden_job()
    fresh = as_wire(torch.rand(1, 16, 64))
    job.spec.tensors[0].CopyFrom(fresh.spec.to_proto())
    order = pb.RunRequest(job=pb.RunJob(job=job.spec))
    sent = [order if r == "job" else r for r in requests]
    error = failure(lambda: list(node.stub.Run(iter(sent))))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.message
    assert node.run(golden_job()).result is not None


def test_more_bytes_than_the_limit_are_refused_before_they_come(node: Node) -> None:
    """And not when they have come."""
    large = tensor_pb2.TensorSpec(data_type="DATA_TYPE_F32", shape=[1 << 20])
    job = golden_job()
    job.spec.tensors.append(large)
    order = pb.RunRequest(job=pb.RunJob(job=job.spec))
    error = failure(lambda: list(node.stub.Run(iter([order]))))
    assert isinstance(error, errors.LimitExceeded)
    assert error.field.startswith("job.tensors")
