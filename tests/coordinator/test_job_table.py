"""Jobs by id: coming back for them, limits, and that nothing is held for longer than it must."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace

import grpc
import pytest

from coordinator.config import Limits, Timing
from coordinator.lifecycle.job import JobPhase
from coordinator.record import Listener
from ditmesh.errors import (
    BadResult,
    DitmeshError,
    Draining,
    JobCancelled,
    JobExists,
    LimitExceeded,
    Overloaded,
    Unavailable,
)
from ditmesh.rpc_status import from_rpc_error
from ditmesh.v1 import job_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.coordinator.client import read_all, served
from tests.coordinator.fakes import (
    TIMING,
    f32,
    gate,
    make_job,
    messages,
    run,
    settled,
    until,
    world,
)

PATIENT = Timing(reattach=5.0, keep_result=5.0, settle=0.0, regroup_wait=0.2)


def kinds(answers: list[pb.SampleResponse]) -> list[str | None]:
    return [answer.WhichOneof("message") for answer in answers]


def test_a_whole_job_over_the_wire() -> None:
    """Needed, accepted, progress, result, its chunks, summary: in this order."""

    async def test() -> None:
        async with served() as s:
            answers = await s.sample(*make_job(steps=2))
            assert [k for k in kinds(answers) if k != "queue"] == [
                "needed",
                "accepted",
                "progress",
                "progress",
                "result",
                "chunk",
                "summary",
            ]
            assert answers[1].accepted == pb.JobAccepted(job_id="job", steps=2)
            assert answers[-1].summary.job_id == "job"

    run(test())


def test_a_job_without_an_id_gets_one() -> None:
    """Different each time."""

    async def test() -> None:
        async with served() as s:
            ids = set()
            for _ in range(2):
                answers = await s.sample(*make_job(""))
                ids.add(next(a.accepted.job_id for a in answers if a.HasField("accepted")))
            assert len(ids) == 2
            assert all(ids)

    run(test())


def test_what_an_executor_keeps_of_a_job_is_not_another_jobs() -> None:
    """The id that executors see is new for each job, though a client repeats its own."""

    async def test() -> None:
        async with served(timing=Timing(settle=0.0, keep_result=0.0)) as s:
            for _ in range(3):
                await s.sample(*make_job("same"))
                await until(lambda: not s.world.jobs._records)
            ids = s.world.scripts["group"].ids
            assert len(set(ids)) == 3
            assert all(seen.startswith("same-") for seen in ids)

    run(test())


def test_a_job_whose_stream_broke_runs_on_and_is_taken_up_again() -> None:
    """By the same id and spec: accepted as resumed, without sending tensors again."""

    async def test() -> None:
        async with served(timing=PATIENT) as s:
            semaphore, s.world.scripts["group"].before = gate()
            spec, tensors = make_job(steps=3)
            call = s.stub.Sample()
            driving = asyncio.create_task(s.drive(call, spec, tensors))
            await until(lambda: s.world.scripts["group"].runs)
            semaphore.release()
            await asyncio.sleep(0.02)
            call.cancel()
            await asyncio.gather(driving, return_exceptions=True)
            (record,) = s.world.jobs._records.values()
            await until(lambda: not record.listeners)
            again = asyncio.create_task(s.sample(spec, tensors))
            await until(lambda: record.listeners)
            for _ in range(2):
                semaphore.release()
            answers = await again
            assert kinds(answers)[0] == "accepted"
            assert answers[0].accepted.resumed
            assert kinds(answers)[-1] == "summary"
            assert len(s.world.scripts["group"].runs) == 1

    run(test())


def test_a_result_can_be_fetched_again_while_it_is_kept() -> None:
    """The same tensors and the same summary; then the id is free for another job."""

    async def test() -> None:
        async with served(timing=replace(TIMING, keep_result=1.5)) as s:
            first = await s.sample(*make_job())
            again = await s.sample(*make_job())
            assert again[0].accepted.resumed
            assert again[-3:] == first[-3:]
            await until(lambda: not s.world.jobs._records)
            assert not (await s.sample(*make_job()))[1].accepted.resumed

    run(test())


def test_a_failed_job_tells_its_error_again() -> None:
    """As often as somebody comes back, without holding on to where it was raised."""

    async def test() -> None:
        async with served(nodes=0, timing=PATIENT) as s:
            s.world.scripts["local"].fail[1] = BadResult("not finite")
            for _ in range(3):
                error = await s.refused(*make_job())
                assert isinstance(error, BadResult)
            (record,) = s.world.jobs._records.values()
            assert record.error is not None
            assert record.error.__traceback__ is None

    run(test())


def test_the_same_id_with_another_spec_is_another_job_and_refused() -> None:
    """ALREADY_EXISTS, naming the field; the first job is not disturbed."""

    async def test() -> None:
        async with served() as s:
            await s.sample(*make_job(seed=1))
            error = await s.refused(*make_job(seed=2))
            assert isinstance(error, JobExists)
            assert error.field == "job.job_id"

    run(test())


def test_ids_belong_to_their_client() -> None:
    """Another identity may have the same id, and learns nothing of the first one's job."""

    async def test() -> None:
        async with world() as w:
            mine, _ = await w.begin(*make_job(seed=1), scope="alice")
            theirs, _ = await w.begin(*make_job(seed=2), scope="bob")
            assert await w.ended(mine) is None
            assert await w.ended(theirs) is None
            assert mine is not theirs

    run(test())


def test_an_id_whose_inputs_are_still_coming_is_busy_for_a_moment() -> None:
    """UNAVAILABLE with a delay: the client's own broken stream may not have been noticed yet."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = make_job()
            call = s.stub.Sample()
            await call.write(pb.SampleRequest(job=spec))
            await call.read()
            error = await s.refused(spec, tensors)
            assert isinstance(error, Unavailable)
            assert error.retry_after_s
            call.cancel()
            await until(lambda: not s.world.jobs._records)

    run(test())


def test_a_job_that_nobody_comes_back_for_is_cancelled() -> None:
    """After the time that it is given, not before."""

    async def test() -> None:
        async with world(timing=replace(TIMING, reattach=1.0)) as w:
            semaphore, w.scripts["group"].before = gate()
            record, listener = await w.begin(*make_job())
            await until(lambda: w.scripts["group"].runs)
            w.jobs.detach(record, listener)
            await asyncio.sleep(0.4)
            assert record.phase is JobPhase.RUNNING
            await until(lambda: record.phase is JobPhase.STOPPING)
            semaphore.release()
            error = await w.ended(record)
            assert isinstance(error, JobCancelled)
            assert "nobody came back" in error.message

    run(test())


def test_a_job_with_another_listener_is_not_abandoned() -> None:
    """Only the last one to go starts the clock, and whoever comes in time stops it."""

    async def test() -> None:
        async with world() as w:
            semaphore, w.scripts["group"].before = gate()
            record, one = await w.begin(*make_job())
            other = w.jobs.attach(record)
            w.jobs.detach(record, one)
            await asyncio.sleep(2 * TIMING.reattach)
            w.jobs.detach(record, other)
            back = w.jobs.attach(record)
            await asyncio.sleep(2 * TIMING.reattach)
            assert record.phase is JobPhase.RUNNING
            for _ in range(4):
                semaphore.release()
            assert await w.ended(record) is None
            assert (await messages(back))[-1].progress.step == 4

    run(test())


def test_a_cancel_over_the_wire_ends_the_job() -> None:
    """CANCELLED for the client, the executor told, the result dropped."""

    async def test() -> None:
        async with served() as s:
            semaphore, s.world.scripts["group"].before = gate()
            spec, tensors = make_job()
            call = s.stub.Sample()
            driving = asyncio.create_task(s.drive(call, spec, tensors))
            await until(lambda: s.world.scripts["group"].runs)
            await call.write(pb.SampleRequest(cancel=pb.CancelJob()))
            (record,) = s.world.jobs._records.values()
            await until(lambda: record.phase is JobPhase.STOPPING)
            semaphore.release()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await driving
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert isinstance(from_rpc_error(caught.value), JobCancelled)
            await s.assert_clean()

    run(test())


def test_a_cancel_before_the_inputs_are_whole_leaves_nothing() -> None:
    """CANCELLED, and the id is free."""

    async def test() -> None:
        async with served() as s:
            call = s.stub.Sample()
            await call.write(pb.SampleRequest(job=make_job()[0]))
            await call.write(pb.SampleRequest(cancel=pb.CancelJob()))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            assert not s.world.jobs._records

    run(test())


def test_a_deadline_while_inputs_come_ends_the_job_cleanly() -> None:
    """The stream is over, and so is the job: the one must not trip over the other."""

    async def test() -> None:
        async with served() as s:
            call = s.stub.Sample(timeout=0.1)
            await call.write(pb.SampleRequest(job=make_job()[0]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_all(call)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: not s.world.jobs._records)

    run(test())


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
        async with served(limits=Limits(in_flight_bytes=2 * whole)) as s:
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
        async with served() as s:
            await s.sample(*make_job())
            s.world.jobs.drain()
            error = await s.refused(*make_job("new"))
            assert isinstance(error, Draining)
            assert error.retry_after_s
            assert (await s.sample(*make_job()))[0].accepted.resumed

    run(test())


def test_two_streams_with_one_new_id_start_one_job() -> None:
    """Whichever is first has it; the other is told to come back."""

    async def test() -> None:
        async with served() as s:
            spec, tensors = make_job()
            ends = await asyncio.gather(
                *(s.sample(spec, tensors) for _ in range(4)), return_exceptions=True
            )
            assert len(s.world.scripts["group"].runs) == 1
            for end in ends:
                assert isinstance(end, (list, Unavailable))

    run(test())


def test_a_slow_listener_loses_old_progress_and_never_the_end() -> None:
    """Memory does not grow with a client that does not read."""

    async def test() -> None:
        async with world() as w:
            record, listener = await w.begin(*make_job(steps=100))
            assert await w.ended(record) is None
            heard = await messages(listener)
            assert len(heard) == 32
            assert heard[-1].progress.step == 100

    run(test())


def test_a_slow_listener_keeps_one_preview() -> None:
    """The newest: they are large. Another listener of the same job loses none by that."""
    picture = tensor_pb2.InlineTensor(data=b"rgb")

    async def test() -> None:
        slow, quick = Listener(), Listener()
        seen = 0
        for step in range(1, 9):
            message = pb.SampleResponse(progress=pb.Progress(step=step))
            if step % 2:
                message.progress.preview.CopyFrom(picture)
            for listener in (slow, quick):
                listener.push(message)
            heard = await quick.next()
            assert heard is not None
            seen += heard.progress.HasField("preview")
        assert seen == 4
        slow.end()
        unread = await messages(slow)
        assert [m.progress.step for m in unread] == list(range(1, 9))
        assert [m.progress.step for m in unread if m.progress.HasField("preview")] == [7]

    run(test())


@pytest.mark.parametrize("short_of", ["places", "bytes"])
def test_who_sends_too_slowly_gives_way(short_of: str) -> None:
    """Silent clients cannot keep others out: when a place or bytes are needed, theirs go."""
    whole = 4 * (128 + 32) + 4 * 4 * 16 * 16
    limits = Limits(queued_jobs=0) if short_of == "places" else Limits(in_flight_bytes=whole + 100)

    async def test() -> None:
        async with served(limits=limits) as s:
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


def test_a_thousand_cancelled_jobs_leave_nothing() -> None:
    """Cancelled in every phase: no record, timer, listener, task or byte stays, nor any tensor."""

    async def test() -> None:
        timing = Timing(reattach=0.01, keep_result=0.0, settle=0.0, regroup_wait=0.2)
        async with world(limits=Limits(queued_jobs=2000), timing=timing) as w:
            alive = []
            for number in range(1000):
                spec, tensors = make_job(f"job{number}", steps=3)
                record, listener = await w.begin(spec, tensors, remaining_s=60.0)
                alive += [weakref.ref(record), weakref.ref(record.admitted)]
                alive += [weakref.ref(tensor) for tensor in tensors]
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                if number % 3:
                    w.runner.stop(record, JobCancelled("enough"))
                w.jobs.detach(record, listener)
                del record, listener, spec, tensors
            await until(lambda: not w.jobs._records, timeout_s=20.0)
            await until(lambda: not w.runner._running)
            assert w.jobs.bytes_in_flight == 0
            assert not w.jobs._timers
            await settled(w.at_work)
            await asyncio.sleep(0.05)
            gc.collect()
            assert not [reference() for reference in alive if reference() is not None]

    run(test())


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_is_remembered_holds_nothing_of_what_went_in(fails: bool) -> None:
    """Neither its tensors, not even through the traceback of its error, nor its spec nor its
    coroutine: thousands are remembered.
    """

    async def test() -> None:
        async with world(nodes=0, timing=PATIENT) as w:
            if fails:
                w.scripts["local"].fail[1] = DitmeshError("it broke")
            spec, tensors = make_job(tensors=[f32(1000)])
            record, listener = await w.begin(spec, tensors)
            alive = [weakref.ref(tensor) for tensor in tensors]
            alive += [weakref.ref(record.admitted), weakref.ref(record.task)]
            assert (await w.ended(record) is not None) == fails
            w.jobs.detach(record, listener)
            del tensors
            gc.collect()
            assert not [reference() for reference in alive if reference() is not None]
            assert w.jobs._records
            for timer in w.jobs._timers.values():
                timer.cancel()

    run(test())


def test_unknown_fields_of_a_spec_are_not_carried_along() -> None:
    """Nobody stores megabytes in fields that this version does not know."""

    async def test() -> None:
        async with world() as w:
            spec, tensors = make_job()
            odd = job_pb2.JobSpec.FromString(spec.SerializeToString() + b"\xfa\x7f\x03abc")
            assert len(odd.SerializeToString()) > len(spec.SerializeToString())
            record, _ = await w.begin(odd, tensors)
            assert b"abc" not in record.admitted.spec.SerializeToString()
            await w.ended(record)

    run(test())
