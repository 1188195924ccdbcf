"""Nothing of a job is held for longer than it must be."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from coordinator.config import Limits, Timing
from coordinator.jobs.record import Listener
from ditmesh.errors import (
    DitmeshError,
    JobCancelled,
)
from ditmesh.v1 import job_pb2, tensor_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.coordinator.fakes import (
    PATIENT,
    f32,
    make_job,
    messages,
    run,
    settled,
    until,
    world,
)


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
