"""How many jobs and bytes are taken in, and who gives way to whom."""

from __future__ import annotations

import grpc
import pytest

from coordinator.config import Limits
from ditmesh.errors import (
    Draining,
    JobCancelled,
    LimitExceeded,
    Overloaded,
)
from ditmesh.rpc_status import from_rpc_error
from ditmesh.v1 import sampler_pb2 as pb
from tests.coordinator.client import served
from tests.coordinator.fakes import (
    PATIENT,
    f32,
    gate,
    make_job,
    run,
    world,
)


def test_the_queue_has_an_end() -> None:
    """RESOURCE_EXHAUSTED with a delay; jobs that have ended do not count."""

    async def test() -> None:
        async with served(limits=Limits(queued_jobs=2)) as s:
            w = s.world
            semaphore, w.scripts["group"].before = gate()
            records = [(await w.begin(*make_job(f"job{i}")))[0] for i in range(3)]
            error = await s.refused(*make_job("more"))
            assert isinstance(error, Overloaded)
            assert error.retry_after_s
            for _ in range(16):
                semaphore.release()
            for record in records:
                assert await w.ended(record) is None
            await s.sample(*make_job("more"))

    run(test())


def test_bytes_in_flight_have_a_budget() -> None:
    """Declared inputs, three states and the result to come are counted; what can never fit is told
    apart.
    """
    text, latent = 4 * (128 + 32), 4 * 16 * 16
    whole = text + 4 * latent

    async def test() -> None:
        async with served(limits=Limits(in_flight_bytes=2 * whole), timing=PATIENT) as s:
            w = s.world
            semaphore, w.scripts["group"].before = gate()
            one, _ = await w.begin(*make_job("one"))
            assert w.jobs.bytes_in_flight == whole
            two, _ = await w.begin(*make_job("two"))
            error = await s.refused(*make_job("three"))
            assert isinstance(error, Overloaded)
            assert error.retry_after_s
            never = await s.refused(*make_job("never", tensors=[f32(2000)]))
            assert isinstance(never, LimitExceeded)
            for _ in range(8):
                semaphore.release()
            for record in (one, two):
                assert await w.ended(record) is None
            assert w.jobs.bytes_in_flight == 2 * latent

    run(test())


def test_results_that_nobody_fetches_give_way_to_work() -> None:
    """The oldest first, and one that is being read stays."""
    latent = 4 * 16 * 16
    total = 4 * (128 + 32) + 4 * latent

    async def test() -> None:
        async with world(limits=Limits(in_flight_bytes=total + 2 * latent), timing=PATIENT) as w:
            records = []
            for name in ("read", "old", "new"):
                record, listener = await w.begin(*make_job(name))
                assert await w.ended(record) is None
                if name != "read":
                    w.jobs.detach(record, listener)
                records.append(record)
            again, _ = await w.begin(*make_job("work"))
            held = [r.job_id for r in w.jobs._records.values()]
            assert held == ["read", "new", "work"]
            assert await w.ended(again) is None
            for timer in w.jobs._timers.values():
                timer.cancel()

    run(test())


def test_jobs_that_ended_are_kept_in_bounded_number() -> None:
    """A client that cancels thousands of jobs does not fill the memory with their ends."""

    async def test() -> None:
        async with world(limits=Limits(kept_jobs=5), timing=PATIENT) as w:
            for number in range(12):
                record, listener = await w.begin(*make_job(f"job{number}"))
                w.runner.stop(record, JobCancelled("enough"))
                w.jobs.detach(record, listener)
                await w.ended(record)
            assert len(w.jobs._records) <= 6
            assert len(w.jobs._timers) == len(w.jobs._records)
            assert "job11" in {r.job_id for r in w.jobs._records.values()}
            for timer in w.jobs._timers.values():
                timer.cancel()

    run(test())


def test_a_coordinator_that_drains_takes_nothing_new() -> None:
    """But whoever comes back for a job gets it."""

    async def test() -> None:
        async with served(timing=PATIENT) as s:
            await s.sample(*make_job())
            s.world.jobs.drain()
            error = await s.refused(*make_job("new"))
            assert isinstance(error, Draining)
            assert error.retry_after_s
            assert (await s.sample(*make_job()))[0].accepted.resumed

    run(test())


@pytest.mark.parametrize("short_of", ["places", "bytes"])
def test_who_sends_too_slowly_gives_way(short_of: str) -> None:
    """Silent clients cannot keep others out: when a place or bytes are needed, theirs go."""
    whole = 4 * (128 + 32) + 4 * 4 * 16 * 16
    limits = Limits(queued_jobs=0) if short_of == "places" else Limits(in_flight_bytes=whole + 100)

    async def test() -> None:
        async with served(limits=limits, timing=PATIENT) as s:
            silent = s.stub.Sample()
            await silent.write(pb.SampleRequest(job=make_job("silent")[0]))
            assert (await silent.read()).HasField("needed")
            spec, tensors = make_job("other")
            assert isinstance(await s.refused(spec, tensors), Overloaded)
            (record,) = s.world.jobs._records.values()
            record.accepted_at -= 3.0
            assert (await s.sample(spec, tensors))[-1].HasField("summary")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await silent.read()
            error = from_rpc_error(caught.value)
            assert isinstance(error, Overloaded)
            assert "too slowly" in error.message
            assert [r.job_id for r in s.world.jobs._records.values()] == ["other"]

    run(test())
