"""Inputs of a job that lie in memory of its client, an honest one or another."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio
import numpy as np
import pytest

from ditmesh import shared_memory
from ditmesh.errors import DitmeshError, InvalidTensor, ProtocolError
from ditmesh.rpc_status import from_rpc_error
from ditmesh.shared_memory import Memory, host_id
from ditmesh.shared_tensors import places
from ditmesh.tensors import TensorSpec, WireTensor
from ditmesh.v1 import job_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.client import Served, served
from tests.coordinator.fakes import f32, make_job, run

TOKENS = 8192
"""Of a text of 2 MiB: so much is mapped."""
ELSEWHERE = ["", "another machine"]


def job_of(text: WireTensor, job_id: str = "job") -> tuple[job_pb2.JobSpec, list[WireTensor]]:
    """A job with this text; its tensors have hashes if the text has one."""
    spec, tensors = make_job(job_id)
    tensors[0] = text
    if text.spec.sha256:
        tensors[1] = tensors[1].hashed()
    del spec.tensors[:]
    spec.tensors.extend(tensor.spec.to_proto() for tensor in tensors)
    return spec, tensors


def texts(tokens: int = 2) -> WireTensor:
    values = np.random.default_rng(tokens).standard_normal((1, tokens, 64), np.float32)
    return WireTensor.from_numpy(values)


def in_memory(
    memory: Memory, tensors: Sequence[WireTensor], indices: Sequence[int] = (0, 1)
) -> tensor_pb2.SharedTensors:
    """Where these tensors are now, for nobody to change."""
    offsets = {index: memory.add(tensors[index]) for index in indices}
    memory.seal()
    return places(memory, offsets)


class Sharer:
    """A client with memory to share, and what it was told."""

    def __init__(self, s: Served, host: str | None = None) -> None:
        self.host = host_id() if host is None else host
        self.needed: list[tuple[list[int], bool]] = []
        """What was asked for, and whether it may be shared."""
        self.accepted = pb.SampleResponse()
        self.used: list[WireTensor] = []
        """The inputs that an executor was given."""
        self._served = s
        s.world.scripts["group"].before = self._before

    async def _before(self, step: int) -> None:
        (record,) = [r for r in self._served.world.jobs._records.values() if not r.phase.ended]
        self.used = list(record.current_job().tensors[:2])

    async def sample(
        self,
        spec: job_pb2.JobSpec,
        tensors: Sequence[WireTensor],
        *,
        offered: tensor_pb2.SharedTensors | None = None,
        shared: tensor_pb2.SharedTensors | None = None,
        shares_always: bool = False,
    ) -> list[pb.SampleResponse]:
        """A whole job; `shared` is sent when tensors are asked for, and then chunks."""
        call = self._served.stub.Sample()
        answers = []
        try:
            await call.write(pb.SampleRequest(job=spec, host=self.host, offered=offered))
            while (answer := await call.read()) is not grpc.aio.EOF:
                answers.append(answer)
                if answer.HasField("accepted"):
                    self.accepted = answer
                if not answer.HasField("needed"):
                    continue
                self.needed.append((list(answer.needed.tensors), answer.shares))
                if shared is not None and answer.needed.tensors:
                    request, shared = (
                        pb.SampleRequest(shared=shared),
                        shared if shares_always else None,
                    )
                    await call.write(request)
                    continue
                for chunk in chunks(tensors, answer.needed.tensors):
                    await call.write(pb.SampleRequest(chunk=chunk))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()
        assert answers[-1].HasField("summary")
        assert self.used == list(tensors)
        return answers


@pytest.mark.parametrize("tokens", [2, TOKENS])
@pytest.mark.parametrize("hashed", [True, False])
def test_what_is_offered_is_not_asked_for(tokens: int, hashed: bool) -> None:
    """With or without a hash, copied or mapped: an executor gets those bytes."""

    async def test() -> None:
        async with served() as s:
            text = texts(tokens)
            spec, tensors = job_of(text.hashed() if hashed else text)
            sharer = Sharer(s)
            with Memory() as memory:
                await sharer.sample(spec, tensors, offered=in_memory(memory, tensors))
            assert sharer.needed == [([], True)]
            assert sharer.accepted.shares
            # What has a hash is kept, and stays what it was.
            again, _ = job_of(tensors[0], "again")
            await sharer.sample(again, tensors)
            assert sharer.needed[1:] == [([] if hashed else [0, 1], True)]

    run(test())


def test_what_was_asked_for_may_be_shared_instead_of_sent() -> None:
    """All of it; what else is lacking is asked for, and may be shared as well."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts())
            sharer = Sharer(s)
            with Memory() as memory:
                await sharer.sample(spec, tensors, shared=in_memory(memory, tensors))
            assert sharer.needed == [([0, 1], True)]
            assert sharer.accepted.shares
            spec, tensors = job_of(texts(3), "other")
            with Memory() as first, Memory() as second:
                offered, shared = in_memory(first, tensors, [1]), in_memory(second, tensors, [0])
                await sharer.sample(spec, tensors, offered=offered, shared=shared)
            assert sharer.needed[1:] == [([0], True)]
            assert sharer.accepted.shares

    run(test())


def test_an_offer_that_is_not_all_is_asked_for_the_rest() -> None:
    """In chunks, if the client likes; it still shares memory."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts().hashed())
            sharer = Sharer(s)
            with Memory() as memory:
                await sharer.sample(spec, tensors, offered=in_memory(memory, tensors, [1]))
            assert sharer.needed == [([0], True)]
            assert sharer.accepted.shares

    run(test())


def unsealed(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    offsets = {index: memory.add(tensors[index]) for index in (0, 1)}
    memory.publish()
    return places(memory, offsets)


def unpublished_and_unsealed(
    memory: Memory, tensors: Sequence[WireTensor]
) -> tensor_pb2.SharedTensors:
    return places(memory, {index: memory.add(tensors[index]) for index in (0, 1)})


def another_token(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    shared.token = bytes(16)
    return shared


def no_token(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    shared.token = b""
    return shared


def beyond_the_end(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    shared.tensors[1].offset += 1 << 20
    return shared


def far_beyond_the_end(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    shared.tensors[1].offset = (1 << 64) - 1
    return shared


def between_pages(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    shared.tensors[0].offset += 4
    return shared


def closed(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    memory.close()
    return shared


def of_who_is_gone(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    with subprocess.Popen(["true"]) as process:
        process.wait()
    shared.pid = process.pid
    return shared


def no_memory(memory: Memory, tensors: Sequence[WireTensor]) -> tensor_pb2.SharedTensors:
    shared = in_memory(memory, tensors)
    shared.fd = 0
    return shared


UNREADABLE = [
    unsealed,
    unpublished_and_unsealed,
    another_token,
    no_token,
    beyond_the_end,
    far_beyond_the_end,
    between_pages,
    closed,
    of_who_is_gone,
    no_memory,
]


@pytest.mark.parametrize("share", UNREADABLE)
@pytest.mark.parametrize("offers", [True, False])
def test_what_cannot_be_read_is_asked_for(
    share: Callable[[Memory, Sequence[WireTensor]], tensor_pb2.SharedTensors], offers: bool
) -> None:
    """All of it, in chunks: the client hears that memory is of no use."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts(TOKENS).hashed())
            sharer = Sharer(s)
            with Memory() as memory:
                where = share(memory, tensors)
                if offers:
                    await sharer.sample(spec, tensors, offered=where)
                else:
                    await sharer.sample(spec, tensors, shared=where)
            asked = [] if offers else [([0, 1], True)]
            assert sharer.needed == [*asked, ([0, 1], False)]
            assert not sharer.accepted.shares

    run(test())


def test_who_could_not_be_read_cannot_share_again() -> None:
    """It was told so."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts())
            with Memory() as memory:
                shared = another_token(memory, tensors)
                with pytest.raises(ProtocolError, match="got shared"):
                    await Sharer(s).sample(spec, tensors, shared=shared, shares_always=True)
            await s.assert_clean()

    run(test())


@pytest.mark.parametrize("host", ELSEWHERE)
def test_memory_of_a_client_elsewhere_is_not_looked_at(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it offers, it is asked for its tensors; memory in their place is an error."""

    def look(*args: Any) -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(shared_memory, "_opened", look)

    async def test() -> None:
        async with served() as s:
            sharer = Sharer(s, host)
            spec, tensors = job_of(texts())
            with Memory() as memory:
                where = in_memory(memory, tensors)
                await sharer.sample(spec, tensors, offered=where)
                assert sharer.needed == [([0, 1], False)]
                assert not sharer.accepted.shares
                with pytest.raises(ProtocolError, match="got shared"):
                    await sharer.sample(*job_of(texts(), "other"), shared=where)
            await s.assert_clean()

    run(test())


def refused(shared: Callable[[Memory], tensor_pb2.SharedTensors], spec: Any) -> DitmeshError:
    """The error of a job whose inputs are in memory; nothing of it is left, not even its hash."""

    async def test() -> DitmeshError:
        async with served() as s:
            sharer = Sharer(s)
            with Memory() as memory, pytest.raises(DitmeshError) as caught:
                await sharer.sample(spec, [], offered=shared(memory))
            await s.assert_clean()
            assert not s.world.jobs._records
            return caught.value

    return run(test())


@pytest.mark.parametrize("tokens", [2, TOKENS])
def test_bytes_with_another_hash_are_refused(tokens: int) -> None:
    """The memory is sealed, but nobody believes what is said of it; it is not kept."""
    text = texts(tokens)
    promised = TensorSpec(text.spec.data_type, text.spec.shape, f32(1).hashed().spec.sha256)
    spec, tensors = job_of(WireTensor(promised, text.data))
    error = refused(lambda memory: in_memory(memory, tensors), spec)
    assert isinstance(error, InvalidTensor)
    assert error.field == "job.tensors[0]"

    async def test() -> None:
        async with served() as s:
            sharer = Sharer(s)
            for job_id in ("one", "two"):
                spec.job_id = job_id
                with Memory() as memory, pytest.raises(InvalidTensor, match="declared sha256"):
                    await sharer.sample(spec, tensors, offered=in_memory(memory, tensors))
            assert not sharer.needed

    run(test())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("hashed", [True, False])
def test_what_is_not_finite_is_refused(value: float, hashed: bool) -> None:
    """As what is sent is."""
    text = f32(1, TOKENS, 64, value=value)
    spec, tensors = job_of(text.hashed() if hashed else text)
    error = refused(lambda memory: in_memory(memory, tensors), spec)
    assert isinstance(error, InvalidTensor)


def test_a_tensor_that_is_begun_cannot_be_shared_any_more() -> None:
    """Half in pieces and half in memory is no tensor."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts(TOKENS))
            with Memory() as memory:
                shared = in_memory(memory, tensors)
                piece = next(chunks(tensors, [0]))
                error = await s.answered(
                    [
                        pb.SampleRequest(job=spec, host=host_id()),
                        pb.SampleRequest(chunk=piece),
                        pb.SampleRequest(shared=shared),
                    ]
                )
            assert isinstance(error, ProtocolError)
            await s.assert_clean()

    run(test())


def test_a_tensor_that_is_named_often_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a message can say a hundred thousand times must not take memory each time."""
    reads = []
    real = shared_memory._read

    def read(fd: int, offset: int, length: int, size: int) -> bytes | memoryview:
        reads.append(length)
        return real(fd, offset, length, size)

    monkeypatch.setattr(shared_memory, "_read", read)

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts())
            with Memory() as memory:
                offered = in_memory(memory, tensors)
                offered.tensors.extend([offered.tensors[0]] * 10_000)
                offered.tensors.add(tensor=99, offset=0)
                await Sharer(s).sample(spec, tensors, offered=offered)
            assert reads == [tensor.spec.nbytes for tensor in tensors]

    run(test())


def test_what_was_taken_is_not_the_clients_any_more() -> None:
    """It cannot write to it, and may let go of it, or die, as soon as the job is accepted."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = job_of(texts(TOKENS).hashed())
            with Memory() as memory:
                offered = in_memory(memory, tensors)
                call = s.stub.Sample()
                gate = asyncio.Event()

                async def before(step: int) -> None:
                    await gate.wait()

                s.world.scripts["group"].before = before
                request = pb.SampleRequest(job=spec, host=host_id(), offered=offered)
                await call.write(request)
                while not (await call.read()).HasField("accepted"):
                    pass
                for place in offered.tensors:
                    with pytest.raises(PermissionError):
                        os.pwrite(memory.fd, bytes(64), place.offset)
            (record,) = s.world.jobs._records.values()
            used = record.current_job().tensors
            assert [bytes(tensor.data) for tensor in used] == [bytes(t.data) for t in tensors]
            assert isinstance(used[0].data, memoryview)
            assert used[0].data.readonly
            gate.set()
            while await call.read() is not grpc.aio.EOF:
                pass

    run(test())


def test_files_do_not_pile_up() -> None:
    """A job that is over, or was refused, leaves none open, though its text was mapped."""

    def is_open() -> set[str]:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return {
            os.readlink(link) + link
            for link in links
            if os.path.islink(link) and "ditmesh" in os.readlink(link)
        }

    async def test() -> None:
        async with served() as s:
            sharer = Sharer(s)
            counts = []
            for number in range(8):
                spec, tensors = job_of(f32(1, TOKENS, 64, value=float("nan")), f"nan{number}")
                with Memory() as memory, pytest.raises(InvalidTensor):
                    await sharer.sample(spec, tensors, offered=in_memory(memory, tensors))
                spec, tensors = job_of(texts(TOKENS), f"{number}")
                with Memory() as memory:
                    await sharer.sample(spec, tensors, offered=in_memory(memory, tensors))
                # The frames that an error came through are freed with other garbage.
                gc.collect()
                counts.append(len(is_open()))
            # The last jobs may be on their way out.
            assert max(counts[4:]) <= max(counts[:4])

    run(test())
