"""`NodeService` on one executor: runs and their states, the watch, groups and models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from ditmesh import errors
from ditmesh.jobs import extract_state
from ditmesh.torch_tensors import to_torch
from ditmesh.v1 import job_pb2
from ditmesh.v1 import node_pb2 as pb
from tests.executor.node import CASE, Node, Stream, failure, golden_job, serving, until
from tests.sampling.golden_cases import load_golden


def test_a_golden_case_gives_comfyuis_latent_and_a_state_after_each_step(node: Node) -> None:
    """Every step's state, the result, and how it ended."""
    ran = node.run(golden_job())
    case = load_golden(CASE)
    assert case.difference(ran.latent) <= case.tolerance
    assert [s.step for s in ran.states] == list(range(1, 9))
    assert ran.done is not None
    assert ran.done.stopped == pb.STOP_REASON_UNSPECIFIED
    assert ran.done.seconds > 0


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ipndm", "dpmpp_sde"])
def test_a_state_through_the_wire_continues_to_the_same_bits(node: Node, sampler: str) -> None:
    """From every step of a sampler without, with one, with several histories, and with noise."""
    job = golden_job(f"flux_{sampler}_simple_n8_cfg1_d1_b1_16x16")
    whole = node.run(job)
    for snapshot in whole.states[::3]:
        continued = node.run(job.continued_from(snapshot))
        assert [s.step for s in continued.states] == list(range(snapshot.step + 1, 9))
        assert torch.equal(continued.latent, whole.latent)


@pytest.mark.parametrize("told", [False, True])
def test_a_job_may_begin_without_its_start(node: Node, told: bool) -> None:
    """If it says so; a start that comes later changes nothing."""
    stream = Stream(node.stub)
    stream.prepare(golden_job(), at_once=True)
    if told:
        stream.send(start=pb.StartRun())
    latent = stream.follow().latent
    torch.testing.assert_close(latent, node.run(golden_job()).latent, rtol=0, atol=0)


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
    for _ in range(12):
        node.run(golden_job(stop_after_step=1))
    # A stream's own thread; the pool may grow by few.
    until(lambda: threading.active_count() <= before + 4)


def test_a_watch_tells_models_at_once_and_then_every_second(node: Node) -> None:
    """A sign of life, with the same incarnation."""
    call = node.stub.Watch(pb.WatchRequest())
    first, second = next(call), next(call)
    call.cancel()
    assert [m.model.name for m in first.models] == ["tiny"]
    assert first.models[0].loaded
    assert first.incarnation == second.incarnation
    assert (first.epoch, first.draining) == (0, False)


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


def test_a_stream_without_a_job_is_no_work(node: Node) -> None:
    """Coordinators open streams ahead: such a one does not keep a node from shutting down, and a
    job on it does.
    """
    ahead = Stream(node.stub)
    drained = threading.Event()

    def drain() -> None:
        node.servicer.drain(grace_s=60.0)
        drained.set()

    ahead.prepare(golden_job())
    threading.Thread(target=drain, daemon=True).start()
    assert not drained.wait(0.2)
    idle = Stream(node.stub)
    ahead.send(start=pb.StartRun())
    assert ahead.follow().result is not None
    ahead.end()
    assert drained.wait(30.0)
    assert not idle.call.done()
    idle.call.cancel()
