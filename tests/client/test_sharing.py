"""What a client shares memory for with a server on its machine, and what it sends all the same.

The conversation alone: what it says, and what it makes of what comes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import grpc
import numpy as np
import pytest

from ditmesh.client.conversation import CANCEL, SampleConversation
from ditmesh.client.retry import RetryPolicy
from ditmesh.client.sharing import Sharing
from ditmesh.errors import InternalError, JobCancelled
from ditmesh.jobs import Job
from ditmesh.output_rooms import write_output
from ditmesh.shared_memory import SealedMemory, host_id
from ditmesh.tensors import HashedTensor, WireTensor
from ditmesh.v1 import job_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb

SHAPE = (1, 16, 32, 32)
NBYTES = 16 * 32 * 32 * 4
LARGE, SMALL = 1 << 19, 1 << 10


class Broken(grpc.RpcError):
    """A connection that is lost."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Connection reset by peer"


def tensor(value: int, nbytes: int = LARGE) -> WireTensor:
    return WireTensor.from_numpy(np.full(nbytes, value, np.uint8)).hashed()


def conversation(
    sharing: Sharing, tensors: Sequence[WireTensor], *, return_state: bool = False
) -> SampleConversation:
    spec = job_pb2.JobSpec(job_id="job", tensors=[t.spec.to_proto() for t in tensors])
    spec.return_state = return_state
    retry = RetryPolicy(retries=3, connect_s=10.0, reattach_s=30.0)
    return SampleConversation(Job(spec, tuple(tensors)), retry=retry, sharing=sharing)


def needed(talk: SampleConversation, *indices: int, shares: bool) -> list[pb.SampleRequest]:
    """What a client sends when it is asked for these."""
    asked = tensor_pb2.TensorsNeeded(tensors=indices)
    requests, _ = talk.receive(pb.SampleResponse(needed=asked, shares=shares))
    return list(requests)


def accepted(
    talk: SampleConversation, *, shares: bool, latent_bytes: int = NBYTES
) -> list[pb.SampleRequest]:
    """What it sends when its job is."""
    answer = pb.JobAccepted(job_id="job", steps=4, latent_bytes=latent_bytes)
    requests, _ = talk.receive(pb.SampleResponse(accepted=answer, shares=shares))
    return list(requests)


def written(talk: SampleConversation, memory: tensor_pb2.CallMemory, value: float) -> None:
    """The server writes a latent, and ends the job."""
    latent = WireTensor.from_numpy(np.full(SHAPE, value, np.float32))
    assert write_output(memory, latent.data)
    result = pb.SampleResult(tensors=[latent.spec.to_proto()], latent=0)
    ended = pb.JobSummary(job_id="job")
    talk.receive(pb.SampleResponse(result=result, written=True, ended=ended))


def kinds(requests: Sequence[pb.SampleRequest]) -> list[str | None]:
    return [request.WhichOneof("message") for request in requests]


def read(shared: tensor_pb2.SharedTensors, tensors: Sequence[WireTensor]) -> list[bytes]:
    """What a server finds there, which must be sealed."""
    memory = SealedMemory(shared.pid, shared.fd, shared.token)
    at = [(place.offset, tensors[place.tensor].spec.nbytes) for place in shared.tensors]
    return [bytes(data) for data in memory.read(at)]


def is_there(shared: tensor_pb2.SharedTensors) -> bool:
    try:
        SealedMemory(shared.pid, shared.fd, shared.token)
    except OSError:
        return False
    return True


def acquainted(*known: WireTensor) -> Sharing:
    """A client whose server is known to read its memory, and has these tensors."""
    sharing = Sharing()
    talk = conversation(sharing, known)
    talk.opening()
    accepted(talk, shares=True, latent_bytes=0)
    return sharing


def test_nothing_is_offered_before_the_server_is_known_to_read() -> None:
    """It is told the host, and may have asked-for tensors shared; the next job's come with it."""
    tensors = [tensor(1), tensor(2)]
    sharing = Sharing()
    talk = conversation(sharing, tensors)
    (first,) = talk.opening()
    assert first.host == host_id()
    assert not first.HasField("offered")
    (request,) = needed(talk, 1, shares=True)
    assert read(request.shared, tensors) == [tensors[1].data]
    accepted(talk, shares=True)
    assert not is_there(request.shared)
    third = tensor(3)
    later = [*tensors, third]
    (first,) = conversation(sharing, later).opening()
    assert [place.tensor for place in first.offered.tensors] == [2]


@pytest.mark.parametrize("shares", [True, False])
def test_what_was_given_is_not_offered(shares: bool) -> None:
    """Nor anything to a server that has said that it cannot read here."""
    known, new = tensor(1), tensor(2)
    sharing = acquainted(known)
    talk = conversation(sharing, [known])
    (first,) = talk.opening()
    assert not first.HasField("offered")
    accepted(talk, shares=shares)
    plain = WireTensor.from_numpy(np.zeros(LARGE, np.uint8))
    tensors = [known, new, plain]
    talk = conversation(sharing, tensors)
    (first,) = talk.opening()
    assert [place.tensor for place in first.offered.tensors] == ([1, 2] if shares else [])
    if shares:
        assert read(first.offered, tensors) == [new.data, plain.data]


def test_what_is_only_a_hash_is_never_offered() -> None:
    """Its bytes are not here."""
    new = tensor(2)
    sharing = acquainted(tensor(1))
    (first,) = conversation(sharing, [HashedTensor(tensor(3).spec), new]).opening()
    assert [place.tensor for place in first.offered.tensors] == [1]


def test_what_was_shared_and_is_asked_for_is_sent() -> None:
    """The server could not read it, whether it was offered or asked for."""
    sharing = acquainted(tensor(1))
    tensors = [tensor(2), tensor(3)]
    for offers in (True, False):
        talk = conversation(sharing if offers else Sharing(), tensors)
        (first,) = talk.opening()
        assert first.HasField("offered") == offers
        if not offers:
            assert kinds(needed(talk, 0, 1, shares=True)) == ["shared"]
        assert kinds(needed(talk, 0, 1, shares=True)) == ["chunk", "chunk"]


def test_an_older_server_gets_chunks_and_sends_them() -> None:
    """It says nothing of memory, so there is none."""
    tensors = [tensor(1), tensor(2)]
    sharing = Sharing()
    talk = conversation(sharing, tensors)
    talk.opening()
    assert kinds(needed(talk, 0, 1, shares=False)) == ["chunk", "chunk"]
    assert accepted(talk, shares=False) == []
    (first,) = conversation(sharing, [tensor(3)]).opening()
    assert not first.HasField("offered")


def test_little_is_sent_as_ever() -> None:
    """In one message, that is as fast."""
    sharing = acquainted(tensor(1))
    tensors = [tensor(2, SMALL)]
    talk = conversation(sharing, tensors)
    (first,) = talk.opening()
    assert not first.HasField("offered")
    assert kinds(needed(talk, 0, shares=True)) == ["chunk"]
    assert accepted(talk, shares=True, latent_bytes=SMALL) == []


def test_results_are_the_callers_own() -> None:
    """Each array can be written to, and is nobody else's, though the room is the same."""
    sharing = Sharing()
    results, rooms = [], []
    for value in (1.0, 2.0):
        talk = conversation(sharing, [])
        talk.opening()
        (request,) = accepted(talk, shares=True)
        rooms.append(request.memory)
        written(talk, request.memory, value)
        assert talk.result is not None
        results.append(talk.result.latent)
    assert rooms[0] == rooms[1]
    first, second = results
    assert (first == 1).all()
    assert (second == 2).all()
    assert first.flags.writeable
    assert second.flags.writeable
    assert not np.shares_memory(first, second)
    assert first.dtype == np.float32


def test_jobs_at_once_have_rooms_of_their_own() -> None:
    """And each its own result."""
    sharing = Sharing()
    talks = [conversation(sharing, []) for _ in range(3)]
    for talk in talks:
        talk.opening()
    memories = [accepted(talk, shares=True)[0].memory for talk in talks]
    for value, (talk, memory) in enumerate(zip(talks, memories, strict=True)):
        written(talk, memory, value)
    for value, talk in enumerate(talks):
        assert talk.result is not None
        assert (talk.result.latent == value).all()


def test_a_state_comes_in_chunks_beside_a_written_latent() -> None:
    """The job is over with the summary then."""
    talk = conversation(Sharing(), [], return_state=True)
    talk.opening()
    (request,) = accepted(talk, shares=True)
    latent = WireTensor.from_numpy(np.full(SHAPE, 3.0, np.float32))
    state = WireTensor.from_numpy(np.full(SHAPE, 4.0, np.float32))
    assert write_output(request.memory, latent.data)
    result = pb.SampleResult(
        tensors=[latent.spec.to_proto(), state.spec.to_proto()],
        latent=0,
        state=job_pb2.JobState(step=2, latent=1),
    )
    talk.receive(pb.SampleResponse(result=result, written=True))
    chunk = tensor_pb2.TensorChunk(tensor=1, offset=0, data=bytes(state.data))
    talk.receive(pb.SampleResponse(chunk=chunk))
    talk.receive(pb.SampleResponse(summary=pb.JobSummary(job_id="job")))
    assert talk.result is not None
    assert (talk.result.latent == 3).all()
    assert talk.result.state is not None
    assert (talk.result.state.tensors[talk.result.state.state.latent].numpy() == 4).all()


def test_a_result_in_chunks_is_taken_whatever_room_there_was() -> None:
    """The room is not used again: nobody said that it was not written to."""
    sharing = Sharing()
    talk = conversation(sharing, [])
    talk.opening()
    (request,) = accepted(talk, shares=True)
    latent = WireTensor.from_numpy(np.full(SHAPE, 3.0, np.float32)).hashed()
    talk.receive(pb.SampleResponse(result=pb.SampleResult(tensors=[latent.spec.to_proto()])))
    chunk = tensor_pb2.TensorChunk(tensor=0, offset=0, data=bytes(latent.data))
    talk.receive(pb.SampleResponse(chunk=chunk))
    talk.receive(pb.SampleResponse(summary=pb.JobSummary(job_id="job")))
    assert talk.result is not None
    assert (talk.result.latent == 3).all()
    assert talk.result.latent.flags.writeable
    assert not write_output(request.memory, latent.data)


def test_a_result_written_to_no_room_is_a_defect() -> None:
    """And so is one that is written twice."""
    talk = conversation(Sharing(), [])
    talk.opening()
    latent = WireTensor.from_numpy(np.zeros(SHAPE, np.float32))
    result = pb.SampleResult(tensors=[latent.spec.to_proto()])
    for taken in (False, True):
        if taken:
            accepted(talk, shares=True)
            talk.receive(pb.SampleResponse(result=result, written=True))
        with pytest.raises(InternalError, match="written result"):
            talk.receive(pb.SampleResponse(result=result, written=True))


def test_a_stream_that_breaks_takes_its_memory_along() -> None:
    """Who is late finds neither the inputs nor the room; the next stream has others."""
    tensors = [tensor(2)]
    sharing = acquainted(tensor(1))
    talk = conversation(sharing, tensors)
    (first,) = talk.opening()
    assert is_there(first.offered)
    talk.retry_after(Broken())
    assert not is_there(first.offered)
    (second,) = talk.opening()
    assert read(second.offered, tensors) == [tensors[0].data]
    (request,) = accepted(talk, shares=True)
    talk.retry_after(Broken())
    assert not write_output(request.memory, bytes(NBYTES))
    (third,) = talk.opening()
    assert not third.HasField("offered")
    (request,) = accepted(talk, shares=True)
    written(talk, request.memory, 5.0)
    assert talk.result is not None
    assert (talk.result.latent == 5).all()


def test_what_a_broken_stream_was_yet_to_send_changes_nothing() -> None:
    """Its messages are made when there is room to send, which may be after its end."""
    talk = conversation(Sharing(), [])
    talk.opening()
    answer = pb.JobAccepted(job_id="job", steps=4, latent_bytes=NBYTES)
    late, _ = talk.receive(pb.SampleResponse(accepted=answer, shares=True))
    talk.retry_after(Broken())
    talk.opening()
    (request,) = accepted(talk, shares=True)
    (stale,) = late
    assert not write_output(stale.memory, bytes(NBYTES))
    written(talk, request.memory, 5.0)
    assert talk.result is not None
    assert (talk.result.latent == 5).all()


def test_a_job_that_was_cancelled_shares_nothing() -> None:
    """Neither with its stream nor when asked; its end is all that it asks for."""
    tensors = [tensor(2)]
    for cancels_first in (True, False):
        talk = conversation(acquainted(tensor(1)) if cancels_first else Sharing(), tensors)
        if cancels_first:
            talk.cancel()
        first, *rest = talk.opening()
        assert rest == [CANCEL] * cancels_first
        assert not first.HasField("offered")
        talk.cancel()
        assert needed(talk, 0, shares=True) == []
    with pytest.raises(JobCancelled):
        talk.retry_after(None)


def test_jobs_leave_no_files_open() -> None:
    """Whatever becomes of them, and though somebody keeps them."""
    before = os.listdir("/proc/self/fd")
    kept = []
    sharing = acquainted(tensor(1))
    for value in range(10, 20):
        for ends in ("in memory", "in nothing"):
            talk = conversation(sharing, [tensor(value)])
            talk.opening()
            requests = accepted(talk, shares=True) if value % 2 else []
            if requests and ends == "in memory":
                written(talk, requests[0].memory, value)
            else:
                talk.retry_after(Broken())
            kept.append(talk)
    # Rooms that were given back are kept for the next results.
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1
