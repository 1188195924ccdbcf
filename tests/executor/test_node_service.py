"""`NodeService` on one executor: runs, states, stops, single calls, and what goes wrong."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from ditmesh import errors
from ditmesh.content import ContentStore
from ditmesh.errors import DitmeshError
from ditmesh.executor.control import StopFlag
from ditmesh.jobs import Job, Snapshot, extract_state
from ditmesh.shared_memory import Memory
from ditmesh.tensors import as_wire
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import job_pb2, tensor_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.chunks import chunks
from tests.executor.node import CASE, Node, Stream, failure, golden_job, serving, until
from tests.sampling.golden_cases import load_golden


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a run of this test has been told to stop."""
    told = threading.Event()

    class Flag(StopFlag):
        def set(self, reason: pb.StopReason) -> None:
            super().set(reason)
            told.set()

    monkeypatch.setattr("ditmesh.executor.session.StopFlag", Flag)
    return told


def value_of(snapshot: Snapshot) -> torch.Tensor:
    return to_torch(snapshot.tensors[snapshot.state.latent])


def test_a_golden_case_gives_comfyuis_latent_and_a_state_after_each_step(node: Node) -> None:
    """Every step's state, the result, and how it ended."""
    ran = node.run(golden_job())
    case = load_golden(CASE)
    assert case.difference(ran.latent) <= case.tolerance
    assert [s.step for s in ran.states] == list(range(1, 9))
    assert ran.done is not None
    assert ran.done.stopped == pb.STOP_REASON_UNSPECIFIED
    assert ran.done.seconds > 0


def test_tensors_with_a_hash_are_asked_for_once(node: Node) -> None:
    """The second job with the same conditioning sends none of it."""
    job = golden_job()
    node.run(job)
    assert node.run(job).asked == []


def test_tensors_in_shared_memory_are_read_or_asked_for_again(node: Node) -> None:
    """From memory the job gives the same bits; from memory that is not there it is sent them."""
    text = as_wire(np.random.default_rng(5).standard_normal((1, 300, 64), np.float32)).hashed()
    alone = golden_job()
    tensors = (text, *alone.tensors[1:])
    alone.spec.tensors[0].CopyFrom(text.spec.to_proto())
    job = Job(alone.spec, tensors)

    def shared(memory: Memory, token: bytes) -> Any:
        stream = Stream(node.stub)
        stream.send(job=pb.RunJob(job=job.spec))
        places = [
            pb.SharedTensor(tensor=i, offset=memory.add(tensors[i]))
            for i in next(stream.call).needed.tensors
        ]
        memory.publish()
        place = {"pid": os.getpid(), "fd": memory.fd, "token": token, "tensors": places}
        stream.send(shared=pb.SharedTensors(**place))
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
    places = [pb.SharedTensor(tensor=i, offset=memory.add(job.tensors[i])) for i in indices]
    memory.publish()
    shared = pb.SharedTensors(pid=os.getpid(), fd=memory.fd, token=memory.token, tensors=places)
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


def test_a_job_that_is_given_up_before_its_start_leaves_nothing(node: Node) -> None:
    """Its inputs may be memory that others wait for: not even until garbage is collected."""
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


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ipndm", "dpmpp_sde"])
def test_a_state_through_the_wire_continues_to_the_same_bits(node: Node, sampler: str) -> None:
    """From every step of a sampler without, with one, with several histories, and with noise."""
    job = golden_job(f"flux_{sampler}_simple_n8_cfg1_d1_b1_16x16")
    whole = node.run(job)
    for snapshot in whole.states[::3]:
        continued = node.run(job.continued_from(snapshot))
        assert [s.step for s in continued.states] == list(range(snapshot.step + 1, 9))
        assert torch.equal(continued.latent, whole.latent)


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


def test_the_final_state_is_returned_when_asked_for(node: Node) -> None:
    """Stopped after a step, it continues to the same bits; its indices count in the result."""
    name = "flux_ipndm_simple_n8_cfg1_d1_b1_16x16"
    part = node.run(golden_job(name, return_state=True, stop_after_step=5))
    whole = node.run(golden_job(name))
    assert part.result is not None
    state = part.result.state
    assert state.step == 5
    assert len(state.history) > 1
    by_name = {key: part.tensors[i] for key, i in state.history.items()}
    fifth = whole.states[4]
    assert by_name == {key: fifth.tensors[i] for key, i in fifth.state.history.items()}
    assert torch.equal(part.latent, to_torch(part.tensors[state.latent]))
    returned = extract_state(state, part.tensors)
    continued = node.run(golden_job(name).continued_from(returned))
    assert torch.equal(continued.latent, whole.latent)


def test_previews_come_as_often_as_asked_for(node: Node) -> None:
    """Small pictures of what the latent will be."""
    ran = node.run(golden_job(preview=job_pb2.Preview(every_steps=3)))
    assert sorted(ran.previews) == [3, 6]
    (picture,) = {tuple(p.spec.shape) for p in ran.previews.values()}
    assert picture == (1, 16, 16, 3)


def test_a_preview_of_any_size_fits_in_a_message() -> None:
    """Thinned out, not refused by gRPC."""
    from ditmesh.executor.reporting import preview
    from ditmesh.models.latents import FLUX

    picture = preview(torch.zeros(2, 16, 1024, 1024), FLUX)
    assert len(picture.data) <= 1 << 20
    assert list(picture.spec.shape)[::3] == [2, 3]


def test_a_stop_ends_the_run_within_a_step(node: Node, stopped: threading.Event) -> None:
    """With its reason; the states up to there are sent, and no result."""
    stream = Stream(node.stub)
    stream.prepare(golden_job())
    go = threading.Semaphore(2)
    node.before.append(go.acquire)
    stream.send(start=pb.StartRun())

    def stop(step: int) -> None:
        if step == 2:
            stream.send(stop=pb.StopRun(reason=pb.STOP_REASON_CANCELLED))
            assert stopped.wait(20)
            go.release(20)

    ran = stream.follow(stop)
    assert ran.done is not None
    assert ran.done.stopped == pb.STOP_REASON_CANCELLED
    assert len(ran.states) <= 3
    assert ran.result is None


def test_a_deadline_ends_the_run_by_itself(node: Node) -> None:
    """Nobody has to send anything."""
    node.before.append(lambda: time.sleep(0.05))
    ran = node.run(golden_job(), deadline_s=0.12)
    assert ran.done is not None
    assert ran.done.stopped == pb.STOP_REASON_DEADLINE
    assert len(ran.states) < 8


def test_states_that_come_too_fast_stay_here_until_they_are_wanted(
    node: Node, stopped: threading.Event
) -> None:
    """Every step is told; the state comes when the run is stopped, and goes on to the same bits."""
    limits = node.servicer._limits
    node.servicer._limits = replace(limits, state_every_s=60.0)
    go = threading.Semaphore(5)
    node.before.append(go.acquire)
    try:
        stream = Stream(node.stub)
        stream.prepare(golden_job())
        stream.send(start=pb.StartRun())
        until(lambda: go._value == 0)
        stream.send(stop=pb.StopRun(reason=pb.STOP_REASON_PREEMPTED))
        until(lambda: node.servicer._keeper.newest("job").state.step == 5)
        assert stopped.wait(20)
        go.release(20)
        part = stream.follow()
        stream.end()
    finally:
        node.servicer._limits = limits
    whole = node.run(golden_job())
    told = [snapshot.step for snapshot in part.states]
    assert told == [*range(1, told[-1] + 1), told[-1]]
    assert [len(snapshot.tensors) for snapshot in part.states] == [0] * told[-1] + [1]
    assert torch.equal(value_of(part.states[-1]), value_of(whole.states[told[-1] - 1]))


@pytest.mark.parametrize("how", ["closed", "stopped", "cancelled"])
def test_a_run_that_is_never_started_computes_nothing(node: Node, how: str) -> None:
    """Prepared, then given up in any way: the next run has the executor."""
    passes: list[int] = []
    node.before.append(lambda: passes.append(1))
    stream = Stream(node.stub)
    stream.prepare(golden_job())
    if how == "stopped":
        stream.send(stop=pb.StopRun(reason=pb.STOP_REASON_CANCELLED))
    if how == "cancelled":
        stream.call.cancel()
    else:
        stream.end()
        assert list(stream.call) == []
    assert passes == []
    node.before.clear()
    assert node.run(golden_job()).result is not None


def test_a_stream_that_breaks_ends_the_run_within_a_step(
    node: Node, stopped: threading.Event
) -> None:
    """It does not go on unseen."""
    passes: list[int] = []
    go = threading.Semaphore(2)
    node.before += [lambda: passes.append(1), go.acquire]
    stream = Stream(node.stub)
    stream.prepare(golden_job())
    stream.send(start=pb.StartRun())
    until(lambda: len(passes) == 3)
    stream.call.cancel()
    assert stopped.wait(20)
    go.release(20)
    node.servicer._torch_thread.submit(lambda: None).result(timeout=20)
    assert len(passes) <= 4


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


def test_an_order_for_another_group_is_stale(node: Node) -> None:
    """ABORTED before anything is sent."""
    order = pb.RunRequest(job=pb.RunJob(epoch=3, job=golden_job().spec))
    assert isinstance(failure(lambda: list(node.stub.Run(iter([order])))), errors.StaleEpoch)


def test_an_unknown_model_is_named(node: Node) -> None:
    """NOT_FOUND with those there are."""
    error = failure(lambda: node.run(golden_job(model="big")))
    assert isinstance(error, errors.UnknownModel)
    assert "tiny" in error.message


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (lambda out: (out[0] * float("nan"),), errors.BadResult),
        (lambda out: (torch.zeros_like(out[0]),), errors.BadResult),
    ],
)
def test_a_result_that_is_none_is_a_failure(
    node: Node, output: Callable[[Any], Any], kind: type[DitmeshError]
) -> None:
    """A model that gives NaN, and one that leaves the noise as it was."""
    hook = node.transformer.register_forward_hook(lambda module, args, out: output(out))
    try:
        assert type(failure(lambda: node.run(golden_job()))) is kind
    finally:
        hook.remove()
    assert node.run(golden_job()).result is not None


def test_a_model_that_breaks_is_the_executors_failure(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """INTERNAL with the advice to go on elsewhere, not a bad request."""

    def broken() -> None:
        raise RuntimeError("out of memory")

    node.before.append(broken)
    error = failure(lambda: node.run(golden_job()))
    assert type(error) is errors.ExecutorFailed
    assert "out of memory" in error.message
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("failure_of_all", [True, False])
def test_a_rank_that_fails_alone_breaks_the_group_before_the_next_job_begins(
    node: Node, failure_of_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it in a collective: the job that waits behind must not answer them. What
    all ranks find alike leaves the group whole.
    """
    seen: list[str] = []
    monkeypatch.setattr(node.servicer._engine, "abort", lambda: seen.append("abort"))
    first, second = Stream(node.stub), Stream(node.stub)
    first.prepare(golden_job(job_id="first"))
    second.prepare(golden_job(job_id="second"))
    go = threading.Event()

    def act() -> None:
        seen.append("pass")
        go.wait(10.0)
        if len(seen) == 1 and not failure_of_all:
            raise RuntimeError("out of memory")

    def spoil(module: Any, args: Any, out: Any) -> Any:
        return (out[0] * float("nan"),) if failure_of_all and len(seen) == 1 else out

    node.before.append(act)
    hook = node.transformer.register_forward_hook(spoil)
    try:
        first.send(start=pb.StartRun())
        until(lambda: seen == ["pass"])
        second.send(start=pb.StartRun())
        go.set()
        kind = errors.BadResult if failure_of_all else errors.ExecutorFailed
        assert type(failure(first.follow)) is kind
        assert second.follow().result is not None
        assert seen == ["pass", *([] if failure_of_all else ["abort"]), *["pass"] * 8]
    finally:
        hook.remove()
        second.end()


def test_the_newest_state_can_be_fetched_and_is_its_own_jobs_only(node: Node) -> None:
    """By the id of its run; another job's is not found."""
    ran = node.run(golden_job(job_id="kept-1"))
    first, *pieces = node.stub.FetchState(pb.FetchStateRequest(job_id="kept-1"))
    assert first.state.state.step == 8
    data = b"".join(bytes(piece.chunk.data) for piece in pieces)
    assert ran.result is not None
    assert data == bytes(ran.tensors[ran.result.latent].data)
    error = failure(lambda: list(node.stub.FetchState(pb.FetchStateRequest(job_id="kept-2"))))
    assert isinstance(error, errors.UnknownJob)


def test_states_are_kept_while_the_next_job_does_its_steps(node: Node) -> None:
    """A leader that dies with a result on its way costs no step; what is older takes no memory."""
    for job_id in ("oldest", "sent", "next"):
        node.run(golden_job(job_id=job_id, stop_after_step=2))

    def kept(job_id: str) -> int:
        first, *_ = node.stub.FetchState(pb.FetchStateRequest(job_id=job_id))
        return int(first.state.state.step)

    assert [kept("sent"), kept("next")] == [2, 2]
    assert isinstance(failure(lambda: kept("oldest")), errors.UnknownJob)


def test_threads_do_not_pile_up(node: Node) -> None:
    """A stream leaves nothing behind."""
    node.run(golden_job())
    before = threading.active_count()
    for _ in range(5):
        node.run(golden_job(stop_after_step=1))
    until(lambda: threading.active_count() <= before + 1)


def test_a_watch_tells_models_at_once_and_then_every_second(node: Node) -> None:
    """A sign of life, with the same incarnation."""
    call = node.stub.Watch(pb.WatchRequest())
    first, second = next(call), next(call)
    call.cancel()
    assert [m.model.name for m in first.models] == ["tiny"]
    assert first.models[0].loaded
    assert first.incarnation == second.incarnation
    assert (first.epoch, first.draining) == (0, False)


def test_more_bytes_than_the_limit_are_refused_before_they_come(node: Node) -> None:
    """And not when they have come."""
    large = tensor_pb2.TensorSpec(data_type="DATA_TYPE_F32", shape=[1 << 20])
    job = golden_job()
    job.spec.tensors.append(large)
    order = pb.RunRequest(job=pb.RunJob(job=job.spec))
    error = failure(lambda: list(node.stub.Run(iter([order]))))
    assert isinstance(error, errors.LimitExceeded)
    assert error.field.startswith("job.tensors")


def test_a_local_sampler_joins_no_group(node: Node) -> None:
    """And leaving one that it is not in is no error."""
    error = failure(lambda: node.stub.JoinGroup(pb.JoinGroupRequest(epoch=1, world_size=1)))
    assert isinstance(error, errors.StaleEpoch)
    assert node.stub.LeaveGroup(pb.LeaveGroupRequest(epoch=1)) == pb.LeaveGroupResponse()


def test_loading_a_model_that_is_loaded_takes_no_time(node: Node) -> None:
    """And one that is not there is named."""
    assert node.stub.LoadModel(pb.LoadModelRequest(model="tiny")).seconds == 0
    error = failure(lambda: node.stub.LoadModel(pb.LoadModelRequest(model="big")))
    assert isinstance(error, errors.UnknownModel)


def test_a_node_that_drains_says_so_and_joins_nothing(tmp_path: Path) -> None:
    """The watch tells it at once."""
    with serving(tmp_path) as node:
        call = node.stub.Watch(pb.WatchRequest())
        assert not next(call).draining
        node.servicer.drain(0.0)
        until(lambda: next(call).draining)
        error = failure(lambda: node.stub.JoinGroup(pb.JoinGroupRequest(epoch=1)))
        assert isinstance(error, errors.Draining)
