"""Whole jobs of both clients against a coordinator that follows the contract."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ditmesh.client import (
    FLUX,
    Accepted,
    AsyncClient,
    Client,
    Conditioning,
    Done,
    Event,
    Progress,
    Queued,
    Retrying,
)
from ditmesh.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    InvalidTensor,
    JobCancelled,
    Overloaded,
    Unavailable,
)
from ditmesh.v1 import sampler_pb2 as pb
from tests.client.conftest import Call
from tests.client.fake import STEPS, Broken, Fake, serve
from tests.ports import free_address

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


def test_result(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A job gives its latent as float32 that may be written to, and who did what."""
    result = call("sample", seed=5, **job)
    np.testing.assert_array_equal(result.latent, np.full((1, 16, 4, 6), STEPS + 5, np.float32))
    assert result.latent.dtype == np.float32
    assert result.latent.flags.writeable
    assert result.state is None
    segment, fallback = result.summary.segments[0], result.summary.fallbacks[0]
    assert (segment.executor, segment.mesh, segment.end_step) == ("group", "ulysses=8", STEPS)
    assert (fallback.source, fallback.target, fallback.reason) == ("group", "local", "GROUP_LOST")
    assert fake.streams[0].kinds == ["job", "chunk"]


def test_latent_format_goes_both_ways(call: Call, job: dict[str, Any]) -> None:
    """With a latent format, latents are in the autoencoder's space on both sides of the call."""
    latent = np.full((1, 16, 4, 6), 3.0, np.float32)
    result = call("sample", **{**job, "size": None}, latent=latent, latent_format=FLUX)
    # The fake adds 1 a step in model space.
    np.testing.assert_allclose(result.latent, 3.0 + STEPS / FLUX.scale, rtol=1e-5)


def test_progress_and_previews(call: Call, job: dict[str, Any]) -> None:
    """Each step is told, with a picture whenever one is due."""
    told: list[Progress] = []
    call("sample", **job, preview_every=2, on_progress=told.append)
    assert [(p.step, p.steps, p.executor) for p in told] == [(i, 4, "group") for i in (1, 2, 3, 4)]
    assert [p.sigma for p in told] == [0.75, 0.5, 0.25, 0.0]
    pictures = [p.preview for p in told]
    assert [picture is not None for picture in pictures] == [False, True, False, True]
    np.testing.assert_array_equal(pictures[1], np.full((1, 2, 2, 3), 2, np.uint8))


def test_returned_state_can_be_continued(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """The state of one result is the start of another job."""
    first = call("sample", **job, return_state=True)
    call("sample", **job, state=first.state)
    sent = list(fake.jobs.values())[1].spec
    assert sent.state.step == STEPS
    tensors = list(fake.jobs.values())[1].tensors
    np.testing.assert_array_equal(tensors[sent.state.latent].numpy(), first.latent)
    assert tensors[sent.state.history["d"]].spec.shape == (1, 1)


def test_conditioning_is_sent_once(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A tensor that the server has is not sent again, by a new client neither."""
    call("sample", **job)
    call("sample", **job, seed=1)
    assert fake.needed == [(0,), ()]
    assert fake.streams[1].kinds == ["job"]


def test_large_inputs_come_in_chunks(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A tensor of 2.5 MiB takes three messages and arrives whole."""
    text = np.random.default_rng(0).standard_normal((1, 10 * 1024, 64)).astype(np.float32)
    call("sample", **{**job, "positive": Conditioning(text)})
    assert fake.streams[0].kinds == ["job", "chunk", "chunk", "chunk"]
    np.testing.assert_array_equal(next(iter(fake.jobs.values())).tensors[0].numpy(), text)


def test_refused_inputs(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A server that ends an upload says why, though messages to it fail; five attempts."""

    def before_chunk(offset: int) -> None:
        if offset:
            raise InvalidTensor("its second piece is wrong", field="job.tensors[0]")

    fake.before_chunk = before_chunk
    inputs = {**job, "positive": Conditioning(np.zeros((1, 6144, 1024), np.float32))}
    for _ in range(5):
        with pytest.raises(InvalidTensor, match="its second piece is wrong"):
            call("sample", **inputs)


def test_broken_stream_is_taken_up(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """After a break the same spec is sent again; the job goes on from where it is."""

    def before_step(stream: int, step: int) -> None:
        if (stream, step) in ((1, 1), (2, 3)):
            raise Broken

    fake.before_step = before_step
    told: list[Progress] = []
    result = call("sample", **job, on_progress=told.append)
    assert [p.step for p in told] == [1, 2, 3, 4]
    assert result.latent[0, 0, 0, 0] == STEPS
    assert len(fake.streams) == 3
    specs = {
        stream.requests[0].job.SerializeToString(deterministic=True) for stream in fake.streams
    }
    assert len(specs) == 1
    assert fake.streams[1].kinds == ["job"]


def test_result_that_broke_off_is_fetched_again(
    call: Call, fake: Fake, job: dict[str, Any]
) -> None:
    """A stream that breaks inside the result costs nothing but the fetch."""

    def replies(response: pb.SampleResponse) -> Iterator[pb.SampleResponse]:
        if response.WhichOneof("message") == "chunk" and len(fake.streams) == 1:
            raise Broken
        yield response

    fake.replies = replies
    assert call("sample", **job).latent.shape == (1, 16, 4, 6)
    assert len(fake.streams) == 2


def test_restarted_server(job: dict[str, Any]) -> None:
    """A job outlives its server: a new one at the same address gets it, inputs and all."""
    old, new = Fake(), Fake()
    server, address = serve(old, free_address())
    reached, stopped = threading.Event(), threading.Event()

    def before_step(stream: int, step: int) -> None:
        reached.set()
        assert stopped.wait(PATIENCE_S)
        raise Broken

    old.before_step = before_step
    with Client(address) as client, client.start(**job) as handle:
        assert reached.wait(PATIENCE_S)
        server.stop(None).wait()
        stopped.set()
        server, _ = serve(new, address)
        resumed = [event.resumed for event in handle if isinstance(event, Accepted)]
    server.stop(None).wait()
    assert resumed == [False, False]
    assert new.streams[0].kinds == ["job", "chunk"]


def test_opening_is_tried_again(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A job whose first streams break, or meet a server that starts or goes, is not lost: the same
    spec is sent again, and the caller is told.
    """

    def before_job(stream: int) -> None:
        if stream == 1:
            raise Broken
        if stream == 2:
            raise Unavailable("the cluster is starting", retry_after_s=0.05)
        if stream == 3:
            raise Draining("the coordinator is shutting down", retry_after_s=0.05)

    fake.before_job = before_job
    told: list[Event] = []
    call("sample", **job, on_event=told.append)
    assert len({stream.requests[0].job.job_id for stream in fake.streams}) == 1
    retries = told[:3]
    assert all(isinstance(event, Retrying) for event in retries)
    assert [event.attempt for event in retries] == [2, 3, 4]  # type: ignore[union-attr]
    assert "Cannot reach" in retries[0].problem  # type: ignore[union-attr]
    assert isinstance(told[3], Accepted)
    assert isinstance(told[-1], Done)


def test_server_that_comes_late(job: dict[str, Any]) -> None:
    """A job that is started before its server is there is taken once it is; so is a prompt."""
    address = free_address()
    with Client(address) as client, client.start(**job) as handle:
        assert isinstance(next(handle), Retrying)
        prompt = ThreadPoolExecutor(1).submit(client.encode_prompt, "flux", "four")
        time.sleep(0.2)
        server, _ = serve(Fake(), address)
        assert handle.result().latent.shape == (1, 16, 4, 6)
        assert prompt.result().truncated_tokens == 2
    server.stop(None).wait()


def test_opening_without_end(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A server that is not there in `connect_s` is an error that says so."""

    def before_job(stream: int) -> None:
        raise Broken

    fake.before_job = before_job
    with pytest.raises(Unavailable, match="Cannot reach") as caught:
        call("sample", **job, client={"connect_s": 0.4})
    assert len(fake.streams) > 1
    assert f"Tried {len(fake.streams)} times in 0.4 s" in caught.value.message


def test_cancel_before_the_server_is_reached(job: dict[str, Any]) -> None:
    """A job that no server has yet is cancelled at once."""
    with Client("127.0.0.1:1", connect_s=60.0) as client, client.start(**job) as handle:
        assert handle.cancel(timeout_s=PATIENCE_S)


def test_break_without_end(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A job that cannot be taken up in the time given fails as unreachable."""

    def before_job(stream: int) -> None:
        raise Broken

    def before_step(stream: int, step: int) -> None:
        fake.before_job = before_job
        raise Broken

    fake.before_step = before_step
    with pytest.raises(Unavailable, match="Connection reset"):
        call("sample", **job, client={"reattach_s": 0.5})
    assert len(fake.streams) > 1


def test_refusal_is_not_repeated(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A server that says a job cannot run is believed; the field at fault is named."""

    def before_job(stream: int) -> None:
        raise InvalidRequest("steps is 0; use 1 to 10000", field="job.schedule.named.steps")

    fake.before_job = before_job
    with pytest.raises(InvalidRequest, match="use 1 to 10000") as caught:
        call("sample", **job, client={"retries": 3})
    assert caught.value.field == "job.schedule.named.steps"
    assert len(fake.streams) == 1


def test_unavailable_job_is_not_repeated(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """That nothing can run an accepted job is an answer, not a broken stream."""

    def before_step(stream: int, step: int) -> None:
        raise Unavailable("no group could be formed", retry_after_s=5.0)

    fake.before_step = before_step
    with pytest.raises(Unavailable, match="no group"):
        call("sample", **job, client={"retries": 3})
    assert len(fake.streams) == 1


@pytest.mark.parametrize(("retries", "works"), [(0, False), (1, False), (2, True)])
def test_full_queue(call: Call, fake: Fake, job: dict[str, Any], retries: int, works: bool) -> None:
    """A server that is full is asked again as often as `retries` says."""

    def before_job(stream: int) -> None:
        if stream <= 2:
            raise Overloaded("64 jobs are waiting", retry_after_s=0.05)

    fake.before_job = before_job
    if works:
        call("sample", **job, client={"retries": retries})
    else:
        with pytest.raises(Overloaded):
            call("sample", **job, client={"retries": retries})
    assert len(fake.streams) == retries + 1


def test_unreachable() -> None:
    """Without a server the error says what to check, soon."""
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable, match="Cannot reach"):
        client.cluster()


def test_deadline(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A job whose time is over fails then, not when the server has time."""
    has_time = threading.Event()
    late: list[int] = []

    def before_step(stream: int, step: int) -> None:
        if step:
            has_time.wait(PATIENCE_S)
            late.append(step)

    fake.before_step = before_step
    with pytest.raises(DeadlineExceeded, match="deadline passed after step 1 of 4"):
        call("sample", **job, deadline_s=1.5)
    assert not late
    has_time.set()


def test_deadline_while_the_server_is_away(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """A broken job is not waited for beyond its deadline."""

    def before_step(stream: int, step: int) -> None:
        raise Broken

    fake.before_step = before_step
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call("sample", **job, deadline_s=1.0, client={"reattach_s": 2 * PATIENCE_S})
    assert time.monotonic() - started < PATIENCE_S


def test_nonsense_from_the_server(call: Call, fake: Fake, job: dict[str, Any]) -> None:
    """Messages that the contract forbids are a defect and say so."""

    def replies(response: pb.SampleResponse) -> Iterator[pb.SampleResponse]:
        if response.WhichOneof("message") != "result":
            yield response

    fake.replies = replies
    with pytest.raises(InternalError, match="before any result"):
        call("sample", **job)


def test_trace_and_token_go_along(address: str, fake: Fake, job: dict[str, Any]) -> None:
    """One trace for a job, known to its handle; the token is sent as HTTP would."""
    with Client(address, token="secret") as client, client.start(**job) as handle:
        handle.result()
    metadata = fake.streams[0].metadata
    assert len(handle.trace_id) == 32
    assert str(metadata["traceparent"]).split("-")[1] == handle.trace_id
    assert metadata["authorization"] == "Bearer secret"


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
