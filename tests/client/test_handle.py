"""A job's handle: its events, and what cancels the job."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ditmesh.client import (
    Accepted,
    AsyncClient,
    Client,
    Done,
    Progress,
    Queued,
    Retrying,
)
from ditmesh.errors import (
    DeadlineExceeded,
    JobCancelled,
)
from ditmesh.v1 import sampler_pb2 as pb
from tests.client.conftest import Call
from tests.client.fake import STEPS, Broken, Fake

PATIENCE_S = 30.0


def hold(fake: Fake, at_step: int = 2) -> threading.Event:
    """Has jobs wait before a step until they are cancelled; set when they are there."""
    arrived = threading.Event()

    def before_step(stream: int, step: int) -> None:
        if step == at_step:
            arrived.set()
            job = next(iter(fake.jobs.values()))
            assert job.cancelled.wait(PATIENCE_S)

    fake.before_step = before_step
    return arrived


def test_cancel_before_the_server_is_reached(job: dict[str, Any]) -> None:
    """A job that no server has yet is cancelled at once."""
    with Client("127.0.0.1:1", connect_s=60.0) as client, client.start(**job) as handle:
        assert handle.cancel(timeout_s=PATIENCE_S)


def test_events_of_a_handle(address: str, job: dict[str, Any]) -> None:
    """A handle tells acceptance, queue, steps and the end, and its result as often as asked."""
    with Client(address) as client:
        handle = client.start(**job)
        events = list(handle)
        assert [type(event) for event in events] == [Accepted, Queued, *[Progress] * 4, Done]
        assert events[0] == Accepted(handle.job_id, STEPS, position=1, resumed=False)
        assert handle.result() is handle.result()
        assert list(handle) == []
        assert handle.cancel() is False


def test_cancel(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """A cancel reaches the server as a message, and returns when the job has ended there."""
    arrived = hold(fake)
    with Client(address) as client:
        handle = client.start(**job)
        assert arrived.wait(PATIENCE_S)
        assert handle.cancel() is True
        with pytest.raises(JobCancelled, match="the client cancelled"):
            handle.result()
    assert fake.streams[0].kinds[-1] == "cancel"


def test_cancel_from_another_thread(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """Whoever waits for the result reads that the job was cancelled."""
    arrived = hold(fake)
    with Client(address) as client:
        handle = client.start(**job)
        threading.Thread(target=lambda: (arrived.wait(PATIENCE_S), handle.cancel())).start()
        with pytest.raises(JobCancelled):
            handle.result()


def test_cancel_survives_a_broken_stream(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """A cancel that comes while the stream is broken is sent on the next one."""

    def before_step(stream: int, step: int) -> None:
        if stream == 1:
            raise Broken
        assert next(iter(fake.jobs.values())).cancelled.wait(PATIENCE_S)

    fake.before_step = before_step
    with Client(address) as client:
        handle = client.start(**job)
        assert any(isinstance(event, Retrying) for event in handle)
        assert handle.cancel() is True
    assert fake.streams[-1].kinds == ["job", "cancel"]


def test_leaving_the_block_cancels(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """A job whose block is left early does not run on."""
    hold(fake)
    with Client(address) as client, client.start(**job) as handle:
        for event in handle:
            if isinstance(event, Progress):
                break
    assert fake.streams[0].kinds[-1] == "cancel"


def test_failing_callback_cancels(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """An exception of `on_progress` ends the job, then reaches the caller."""
    hold(fake)

    def on_progress(progress: Progress) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        call("sample", **job, on_progress=on_progress)
    assert fake.streams[0].kinds[-1] == "cancel"


def test_ctrl_c_cancels(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """Ctrl-C during a blocking sample ends the job on the server before it is raised."""
    arrived = hold(fake)

    def interrupt() -> None:
        arrived.wait(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with Client(address) as client, pytest.raises(KeyboardInterrupt):
        client.sample(**job)
    assert fake.streams[0].kinds[-1] == "cancel"
    assert next(iter(fake.jobs.values())).cancelled.is_set()


def test_cancelled_task_cancels(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """A cancelled asyncio task ends its job on the server before it ends."""
    arrived = hold(fake)

    async def run() -> None:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.sample(**job))
            await asyncio.to_thread(arrived.wait, PATIENCE_S)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    asyncio.run(run())
    assert fake.streams[0].kinds[-1] == "cancel"


def test_asynchronous_handle(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """The asyncio handle tells the same events, and cancels in the same way."""

    async def run() -> None:
        async with AsyncClient(address) as client:
            events = [event async for event in client.start(**job)]
            assert [type(e) for e in events] == [Accepted, Queued, *[Progress] * 4, Done]
            fake.jobs.clear()
            arrived = hold(fake)
            handle = client.start(**job)
            await asyncio.to_thread(arrived.wait, PATIENCE_S)
            assert await handle.cancel() is True
            with pytest.raises(JobCancelled):
                await handle.result()

    asyncio.run(run())


def test_unconfirmed_cancel(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """A server that does not end the job in time is an error of `cancel`, not a hang."""
    release = threading.Event()

    def before_step(stream: int, step: int) -> None:
        release.wait(PATIENCE_S)
        next(iter(fake.jobs.values())).cancelled.wait(PATIENCE_S)

    fake.before_step = before_step
    with Client(address) as client:
        handle = client.start(**job)
        next(handle)
        with pytest.raises(DeadlineExceeded, match="did not confirm"):
            handle.cancel(timeout_s=0.3)
        release.set()
        assert handle.cancel() is True


def test_closing_leaves_jobs(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """Closing a client ends its handles without a cancel: the job may be taken up elsewhere."""
    release = threading.Event()
    fake.before_step = lambda stream, step: release.wait(PATIENCE_S) and None
    client = Client(address)
    handle = client.start(**job)
    next(handle)
    client.close()
    release.set()
    with pytest.raises(JobCancelled, match="client was closed"):
        handle.result()
    assert "cancel" not in fake.streams[0].kinds


def after_the_result(fake: Fake) -> threading.Event:
    """Has streams stay open when they have brought a result, until this is set."""
    leave = threading.Event()

    def replies(response: pb.SampleResponse) -> Iterator[pb.SampleResponse]:
        yield response
        if response.WhichOneof("message") == "summary":
            assert leave.wait(PATIENCE_S)

    fake.replies = replies
    return leave


def test_nobody_waits_for_a_stream_to_end(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """A job has ended when its result is there: it is given, and leaving cancels nothing."""
    leave = after_the_result(fake)
    with Client(address) as client:
        with client.start(**job) as handle:
            assert handle.result().latent.size
            assert handle.cancel() is False
        assert not leave.is_set()
        leave.set()
    assert "cancel" not in fake.streams[0].kinds


def test_no_task_waits_for_a_stream_to_end(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """The same of the asyncio client."""
    leave = after_the_result(fake)

    async def run() -> None:
        async with AsyncClient(address) as client:
            async with client.start(**job) as handle:
                assert (await handle.result()).latent.size
            assert not leave.is_set()
            leave.set()

    asyncio.run(run())
    assert "cancel" not in fake.streams[0].kinds
