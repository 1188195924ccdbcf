"""Streams that are not what the contract says, or that end early: an error, and nothing is held."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from coordinator.config import Limits
from ditmesh.v1 import sampler_pb2 as pb
from ditmesh.v1 import tensor_pb2
from tests.coordinator.client import read_all, served
from tests.coordinator.fakes import make_job, run, settled

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("messages", "field", "words"),
    [
        ([], "job", "first message"),
        ([pb.SampleRequest(cancel=pb.CancelJob())], "job", "first message"),
        ([pb.SampleRequest()], "job", "first message"),
        (["job", "job"], "", "expected a chunk or cancel, got job"),
        (["job", pb.SampleRequest()], "", "expected a chunk or cancel"),
        (["job", 7], "", "expected byte 0"),
        (["job", 0, 0], "", "expected byte 256"),
        (["job", "long"], "job.tensors[0]", "more were sent"),
        (["job", 0], "", "ended before job.tensors[0] was whole: 256 of 512"),
        (["job"], "", "ended before job.tensors[0] was whole: 0 of 512"),
    ],
)
def test_messages_out_of_order_and_half_streams_end_the_job(
    messages: list[Any], field: str, words: str
) -> None:
    """INVALID_ARGUMENT; the id is free again at once, and nothing is held."""
    half = tensor_pb2.TensorChunk(tensor=0, data=bytes(256))
    made = {
        "long": pb.SampleRequest(chunk=tensor_pb2.TensorChunk(tensor=0, data=bytes(513))),
        0: pb.SampleRequest(chunk=half),
        7: pb.SampleRequest(chunk=tensor_pb2.TensorChunk(tensor=7, data=b"x")),
    }

    async def test() -> None:
        async with served() as s:
            spec, tensors = make_job()
            made["job"] = pb.SampleRequest(job=spec)
            error = await s.answered(
                [made[m] if isinstance(m, (str, int)) else m for m in messages]
            )
            assert (error.code, error.field) == (INVALID, field)
            assert words in error.message
            await s.assert_clean()
            assert (await s.sample(spec, tensors))[-1].HasField("summary")

    run(test())


def test_a_stream_that_falls_silent_is_given_up() -> None:
    """DEADLINE_EXCEEDED after the time that an input may take; its id is free again."""

    async def test() -> None:
        async with served(limits=Limits(input_timeout_s=1.0)) as s:
            spec, tensors = make_job()
            call = s.stub.Sample()
            await call.write(pb.SampleRequest(job=spec))
            with pytest.raises(grpc.aio.AioRpcError, match="nothing came for 1 s") as caught:
                await read_all(call)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await s.assert_clean()
            assert (await s.sample(spec, tensors))[-1].HasField("summary")

    run(test())


def test_a_stream_that_breaks_half_way_leaves_nothing() -> None:
    """Cancelled by the client before its inputs were whole: the job is gone, not kept."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = make_job()
            call = s.stub.Sample()
            await call.write(pb.SampleRequest(job=spec))
            await call.read()
            call.cancel()
            await settled(lambda: s.world.jobs._records)
            await s.assert_clean()
            assert (await s.sample(spec, tensors))[-1].HasField("summary")

    run(test())


def test_a_deadline_that_has_passed_is_told_as_one() -> None:
    """Nothing starts for it."""

    async def test() -> None:
        async with served() as s:
            error = await s.refused(*make_job(), timeout=0)
            assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert s.world.scripts["group"].runs == []

    run(test())


def test_bytes_that_differ_from_their_hash_are_refused() -> None:
    """By the tensor's name."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = make_job()
            spec.tensors[0].sha256 = bytes(32)
            error = await s.refused(spec, tensors)
            assert (error.code, error.field) == (INVALID, "job.tensors[0]")
            assert "sha256" in error.message
            await s.assert_clean()

    run(test())
