"""Jobs whose server breaks off, is late, refuses them or has no time: tried again or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ditmesh.client import (
    Accepted,
    Client,
    Done,
    Event,
    Progress,
    Retrying,
)
from ditmesh.errors import (
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from ditmesh.v1 import sampler_pb2 as pb
from tests.client.conftest import Call
from tests.client.fake import STEPS, Broken, Fake, serve
from tests.ports import free_address

PATIENCE_S = 30.0


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
        call("sample", **job, deadline_s=4.0)
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
