"""How a result gets to a client: in pieces with its hash, or written to the client's memory."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import pytest

from coordinator.executors.member import RunEnd
from coordinator.jobs.record import JobRecord
from coordinator.services import sampler
from coordinator.services.results import Results
from ditmesh.content import ContentStore
from ditmesh.output_rooms import OutputRoom, OutputRooms
from ditmesh.shared_memory import host_id
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2, node_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.client import Served, served
from tests.coordinator.fakes import PATIENCE_S, PATIENT, f32, gate, make_job, run, until, world

LATENT = f32(1, 16, 4, 4)
"""What executors make here."""
BATCH = 16
"""Of a latent that is large enough for a room."""


def beyond_the_end(memory: tensor_pb2.CallMemory) -> None:
    memory.output += 1


def another(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.token = bytes(16)


def gone(memory: tensor_pb2.CallMemory) -> None:
    memory.tensors.fd = 1 << 20


def nothing(memory: tensor_pb2.CallMemory) -> None:
    memory.Clear()


def new_room() -> OutputRoom:
    room = OutputRooms().take(BATCH * LATENT.spec.nbytes)
    assert room is not None
    return room


class Receiver:
    """A client's side of `Results.messages`, with room for a latent."""

    def __init__(self, results: Results, record: JobRecord) -> None:
        self.room = new_room()
        self._results = results
        self._record = record

    async def messages(self, memory: tensor_pb2.CallMemory | None) -> list[pb.SampleResponse]:
        return [message async for message in self._results.messages(self._record, memory)]


def with_result(
    test: Callable[[Receiver, ContentStore, tuple[WireTensor, ...]], Any], *, with_state: bool
) -> None:
    """Runs a test of the result of a job that has just ended."""

    async def go() -> None:
        async with world() as w:
            spec, tensors = make_job(empty_latent=job_pb2.EmptyLatent(batch=BATCH))
            record, _ = await w.begin(spec, tensors, scope="me")
            assert await w.ended(record) is None
            assert record.end is not None
            if with_state:
                (latent,) = record.end.tensors
                result = pb.SampleResult(latent=1, state=job_pb2.JobState(latent=0))
                made = (f32(1, 16, 4, 4, value=0.25), latent)
                result.tensors.extend(tensor.spec.to_proto() for tensor in made)
                record.end = RunEnd(node_pb2.STOP_REASON_UNSPECIFIED, result, made)
            store = ContentStore(1 << 20)
            receiver = Receiver(Results(store), record)
            await test(receiver, store, record.end.tensors)

    run(go())


def kinds(answers: list[pb.SampleResponse]) -> list[str | None]:
    return [answer.WhichOneof("message") for answer in answers]


def test_without_memory_a_result_comes_in_pieces_with_its_hash() -> None:
    """As it always has: whoever has the latent decoded names it by its hash."""

    async def test(client: Receiver, store: ContentStore, made: tuple[WireTensor, ...]) -> None:
        answers = await client.messages(None)
        assert kinds(answers) == ["result", "chunk", "summary"]
        (spec,) = answers[0].result.tensors
        assert spec.sha256 == made[0].hashed().spec.sha256
        assert store.get("me", spec.sha256) == made[0].hashed()
        assert bytes(answers[1].chunk.data) == bytes(made[0].data)
        assert answers[0] == pb.SampleResponse(result=answers[0].result)
        assert answers[2].summary.job_id == "job"

    with_result(test, with_state=False)


def test_with_memory_a_result_is_one_message() -> None:
    """Written, its end told with it. It has no hash yet; soon its latent is kept under it."""

    async def test(client: Receiver, store: ContentStore, made: tuple[WireTensor, ...]) -> None:
        (answer,) = await client.messages(client.room.message)
        assert client.room.read() == made[0].data
        assert answer.written
        assert [spec.sha256 for spec in answer.result.tensors] == [b""]
        assert answer.ended.job_id == "job"
        latent = made[0].hashed()
        await until(lambda: store.get("me", latent.spec.sha256) == latent)
        assert store.get("", latent.spec.sha256) is None
        (again,) = await client.messages(client.room.message)
        assert again == answer
        # Whoever comes back without memory gets it with its hash.
        answers = await client.messages(None)
        assert kinds(answers) == ["result", "chunk", "summary"]
        assert answers[0].result.tensors[0].sha256 == latent.spec.sha256

    with_result(test, with_state=False)


def test_what_comes_with_a_written_latent_comes_in_pieces() -> None:
    """All but the latent, wherever it stands in the table; then the summary."""

    async def test(client: Receiver, store: ContentStore, made: tuple[WireTensor, ...]) -> None:
        answers = await client.messages(client.room.message)
        assert kinds(answers) == ["result", "chunk", "summary"]
        assert answers[0].written
        assert not answers[0].HasField("ended")
        assert client.room.read() == made[1].data
        assert answers[1].chunk.tensor == 0
        assert bytes(answers[1].chunk.data) == bytes(made[0].data)
        await until(lambda: store.get("me", made[1].hashed().spec.sha256))

    with_result(test, with_state=True)


@pytest.mark.parametrize("lie", [beyond_the_end, another, gone, nothing])
def test_where_nothing_can_be_written_the_result_is_sent(
    lie: Callable[[tensor_pb2.CallMemory], None],
) -> None:
    """Whole, as if there were no memory."""

    async def test(client: Receiver, store: ContentStore, made: tuple[WireTensor, ...]) -> None:
        memory = client.room.message
        lie(memory)
        answers = await client.messages(memory)
        assert kinds(answers) == ["result", "chunk", "summary"]
        assert not answers[0].written
        assert answers[0].result.tensors[0].sha256 == made[0].hashed().spec.sha256
        assert bytes(client.room.read()) == bytes(client.room.nbytes)

    with_result(test, with_state=False)


def test_a_hash_waits_for_nothing_that_clients_send() -> None:
    """It is made while every thread of the loop's own looks through a large upload."""

    async def test(client: Receiver, store: ContentStore, made: tuple[WireTensor, ...]) -> None:
        loop, over = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        looked_through = loop.run_in_executor(None, over.wait)
        try:
            async with asyncio.timeout(PATIENCE_S):
                answers = await client.messages(None)
        finally:
            over.set()
        assert answers[0].result.tensors[0].sha256
        await looked_through

    with_result(test, with_state=False)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The service's view of each stream's client, the newest last."""
    seen: list[Any] = []
    real = sampler._Client

    def made(*args: Any) -> Any:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(sampler, "_Client", made)
    return seen


async def follow(
    s: Served,
    spec: Any,
    room: OutputRoom,
    host: str,
    tensors: Sequence[WireTensor] = (),
) -> list[pb.SampleResponse]:
    """A job, new or known, with room for its result once it is accepted."""
    call = s.stub.Sample()
    await call.write(pb.SampleRequest(job=spec, host=host))
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
        for chunk in chunks(tensors, answer.needed.tensors):
            await call.write(pb.SampleRequest(chunk=chunk))
        if answer.HasField("accepted"):
            await call.write(pb.SampleRequest(memory=room.message))
    return answers


@pytest.mark.parametrize("here", [True, False])
def test_a_client_that_comes_back_may_have_room(here: bool, clients: list[Any]) -> None:
    """On this machine; what another one says of its memory is not looked at."""

    async def test() -> None:
        async with served(timing=PATIENT) as s:
            semaphore, s.world.scripts["group"].before = gate()
            spec, tensors = make_job(steps=3, empty_latent=job_pb2.EmptyLatent(batch=BATCH))
            driving = asyncio.create_task(s.sample(spec, tensors))
            await until(lambda: s.world.scripts["group"].runs)
            room = new_room()
            host = host_id() if here else "another machine"
            again = asyncio.create_task(follow(s, spec, room, host))
            (record,) = s.world.jobs._records.values()
            await until(lambda: len(record.listeners) == 2)
            if here:
                await until(lambda: clients[-1].memory)
            for _ in range(3):
                semaphore.release()
            answers = await again
            first = await driving
            assert answers[0].accepted.resumed
            assert answers[0].accepted.latent_bytes == room.nbytes
            assert answers[0].shares == here
            assert answers[-1].HasField("ended") == here
            expected = [a.chunk.data for a in first if a.HasField("chunk")]
            written = bytes(room.read())
            assert [written] == expected if here else written == bytes(room.nbytes)
            # The other client has none of this.
            assert kinds(first)[-3:] == ["result", "chunk", "summary"]
            assert not any(answer.shares or answer.written for answer in first)

    run(test())


def test_a_result_that_was_written_can_be_named_by_its_hash(
    clients: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client whose it is: what a latent leads to next needs no upload."""
    kept: list[bytes] = []
    put = ContentStore.put

    def noted(store: ContentStore, scope: str, tensor: WireTensor) -> None:
        put(store, scope, tensor)
        kept.append(tensor.spec.sha256)

    monkeypatch.setattr(ContentStore, "put", noted)

    async def test() -> None:
        async with served() as s:
            semaphore, s.world.scripts["group"].before = gate()
            spec, tensors = make_job(steps=1, empty_latent=job_pb2.EmptyLatent(batch=BATCH))
            room = new_room()
            sampling = asyncio.create_task(follow(s, spec, room, host_id(), tensors))
            await until(lambda: clients and clients[-1].memory)
            semaphore.release()
            assert (await sampling)[-1].written
            latent = f32(BATCH, 16, 4, 4).hashed()
            assert room.read() == latent.data
            await until(lambda: latent.spec.sha256 in kept)
            semaphore.release()
            spec, tensors = make_job("next", steps=1, tensors=[latent])
            spec.latent_tensor = 2
            answers = await s.sample(spec, tensors)
            assert answers[0].needed.tensors == [0, 1]

    run(test())


def test_a_client_that_is_gone_is_nobodys_problem() -> None:
    """Its process died with the room: the result is there for whoever comes back."""

    async def test(client: Receiver, store: ContentStore, made: tuple[WireTensor, ...]) -> None:
        memory = client.room.message
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        memory.tensors.pid = child
        answers = await client.messages(memory)
        assert kinds(answers) == ["result", "chunk", "summary"]

    with_result(test, with_state=False)
