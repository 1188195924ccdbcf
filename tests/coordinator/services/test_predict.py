"""Single transformer calls over the wire, with scripted executors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
import pytest

from coordinator.config import Limits
from ditmesh.errors import (
    DitmeshError,
    ExecutorFailed,
    GroupLost,
    InvalidRequest,
    InvalidTensor,
    Overloaded,
)
from ditmesh.rpc_status import from_status_bytes
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.chunks import chunks
from tests.coordinator.client import served
from tests.coordinator.fakes import f32, run


def make_call(call_id: int) -> tuple[pb.PredictCall, list[WireTensor]]:
    """A call on an empty 4x4 latent."""
    tensors = [f32(1, 16, 4, 4), f32(1, 2, 64), f32(1, 32)]
    call = pb.PredictCall(
        call_id=call_id,
        x=0,
        timestep=[0.5],
        conditioning=job_pb2.Conditioning(text=1, pooled=2),
        tensors=[tensor.spec.to_proto() for tensor in tensors],
    )
    return call, tensors


def test_single_calls_share_the_budget_of_bytes() -> None:
    """A call that does not fit is refused for now and its stream goes on; in the end nothing is
    held.
    """
    x = 4 * 16 * 16
    call_bytes = 2 * x + 4 * (128 + 32)

    async def test() -> None:
        async with served(limits=Limits(in_flight_bytes=call_bytes + 100)) as s:
            stream = s.stub.Predict()
            await stream.write(pb.PredictRequest(open=pb.PredictOpen(model="tiny")))
            with s.world.jobs.reserved(200):
                await stream.write(pb.PredictRequest(call=make_call(1)[0]))
                refused = (await stream.read()).error
                assert isinstance(from_status_bytes(refused.status), Overloaded)
            call, tensors = make_call(2)
            await stream.write(pb.PredictRequest(call=call))
            needed = (await stream.read()).needed
            assert s.world.jobs.bytes_in_flight == call_bytes
            for chunk in chunks(tensors, needed.tensors):
                await stream.write(pb.PredictRequest(chunk=chunk))
            assert (await stream.read()).result.call_id == 2
            assert (await stream.read()).HasField("chunk")
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert s.world.jobs.bytes_in_flight == 0

    run(test())


async def answer(stream: Any, call_id: int) -> pb.PredictResult | DitmeshError:
    """Make a call; its result, or its error."""
    call, tensors = make_call(call_id)
    await stream.write(pb.PredictRequest(call=call))
    message = await stream.read()
    for chunk in chunks(tensors, message.needed.tensors):
        await stream.write(pb.PredictRequest(chunk=chunk))
    message = await stream.read()
    if message.HasField("error"):
        return from_status_bytes(message.error.status)
    assert (await stream.read()).HasField("chunk")
    return message.result


@pytest.mark.parametrize(
    ("group", "local", "executor"),
    [
        ([GroupLost("rank 1 died")], [], "group"),
        ([GroupLost("rank 1 died")] * 2, [], "local"),
        ([ExecutorFailed("no memory")], [], "local"),
        ([GroupLost("rank 1 died")] * 2, [ExecutorFailed("it died")], ""),
        ([ExecutorFailed("no memory")], [ExecutorFailed("it died")], "local"),
        ([ExecutorFailed("no memory")], [ExecutorFailed("it died")] * 2, ""),
    ],
)
def test_a_call_goes_down_the_ladder(
    group: Sequence[Exception], local: Sequence[Exception], executor: str
) -> None:
    """An executor that fails, the local sampler too, costs a call an attempt; it has three. Its
    stream goes on in any case.
    """

    async def test() -> None:
        async with served() as s:
            left = {"group": list(group), "local": list(local)}

            def failing(name: str) -> Any:
                async def before(step: int) -> None:
                    if left[name]:
                        raise left[name].pop(0)

                return before

            for name, script in s.world.scripts.items():
                script.before = failing(name)
            stream = s.stub.Predict()
            await stream.write(pb.PredictRequest(open=pb.PredictOpen(model="tiny")))
            got = await answer(stream, 1)
            assert left == {"group": [], "local": []}
            if executor:
                assert isinstance(got, pb.PredictResult)
                assert got.executor == executor
            else:
                assert isinstance(got, ExecutorFailed)
            assert isinstance(await answer(stream, 2), pb.PredictResult)
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF

    run(test())


def unasked_call(call_id: int) -> tuple[pb.PredictCall, list[WireTensor]]:
    """A call whose x follows it at once; its conditioning has hashes."""
    call, tensors = make_call(call_id)
    tensors = [tensors[0], *(tensor.hashed() for tensor in tensors[1:])]
    del call.tensors[:]
    call.tensors.extend(tensor.spec.to_proto() for tensor in tensors)
    call.unasked = 1
    return call, tensors


async def send(stream: Any, call: pb.PredictCall, pieces: Sequence[Any]) -> None:
    await stream.write(pb.PredictRequest(call=call))
    for chunk in pieces:
        await stream.write(pb.PredictRequest(chunk=chunk))


def test_what_comes_unasked_is_not_asked_for() -> None:
    """Only what else lacks is; once nothing does, the first answer is the result."""

    async def test() -> None:
        async with served() as s:
            stream = s.stub.Predict()
            await stream.write(pb.PredictRequest(open=pb.PredictOpen(model="tiny")))
            for call_id in (1, 2):
                call, tensors = unasked_call(call_id)
                await send(stream, call, list(chunks(tensors, [0])))
                message = await stream.read()
                if call_id == 1:
                    assert list(message.needed.tensors) == [1, 2]
                    for chunk in chunks(tensors, [1, 2]):
                        await stream.write(pb.PredictRequest(chunk=chunk))
                    message = await stream.read()
                assert message.result.call_id == call_id
                assert bytes((await stream.read()).chunk.data) == tensors[0].data

    run(test())


def test_a_call_that_fails_takes_with_it_what_came_unasked() -> None:
    """Refused before or while its tensors come; the next call on the stream is answered."""

    async def test() -> None:
        async with served() as s:
            stream = s.stub.Predict()
            await stream.write(pb.PredictRequest(open=pb.PredictOpen(model="tiny")))
            hashed, tensors = unasked_call(1)
            hashed.unasked = 2
            wrong, _ = unasked_call(2)
            wrong.timestep[:] = [0.5, 0.5]
            nan, _ = unasked_call(3)
            nan.conditioning.ClearField("pooled")
            del nan.tensors[1:]
            nan.conditioning.text = 0
            failures = []
            for call in (hashed, wrong, nan):
                await send(stream, call, list(chunks(tensors, [0])))
                failure = (await stream.read()).error
                assert failure.call_id == call.call_id
                failures.append(from_status_bytes(failure.status))
            assert isinstance(failures[0], InvalidRequest)
            assert "unasked" in failures[0].message
            assert isinstance(failures[2], InvalidTensor)
            assert isinstance(await answer(stream, 4), pb.PredictResult)

    run(test())
