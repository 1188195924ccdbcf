"""What ends a running job, and what does not: cancel, deadline, broken streams."""

from __future__ import annotations

from typing import Any

import pytest

from ditmesh.client import Accepted, Client, JobHandle, Progress
from ditmesh.errors import DeadlineExceeded, JobCancelled
from tests.e2e.cluster import Cluster
from tests.e2e.jobs import executors, random_job
from tests.e2e.proxy import Proxy

pytestmark = pytest.mark.timeout(300)

ENDLESS = random_job(3, steps=10_000, fallback="forbid")
"""It never ends by itself: hours on eight ranks."""


def wait_for_step(handle: JobHandle, step: int) -> None:
    """Read the job's events up to the end of a step."""
    next(event for event in handle if isinstance(event, Progress) and event.step >= step)


def wait_until_free(cluster: Cluster) -> None:
    """Wait until nothing runs; then a job must get the whole group."""
    cluster.wait(lambda: cluster.snapshot().queue.running == 0, "the end of the job")
    result = cluster.client.sample(**random_job(5, fallback="forbid"))
    assert executors(result) == [("group", 0, 8)]


def test_cancel(eight: Cluster) -> None:
    """A cancelled job ends on every rank within a step, and the group is free for the next."""
    epoch = eight.snapshot().group.epoch
    with eight.client.start(**ENDLESS, job_id="cancelled") as handle:
        wait_for_step(handle, 2)
        assert handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result()
    wait_until_free(eight)
    assert eight.snapshot().group.epoch == epoch
    assert steps_after_the_stop(eight, "cancelled") <= 1


def steps_after_the_stop(cluster: Cluster, job_id: str) -> int:
    """How many steps the leader ended after it was told to stop, by its own clock."""

    def runs() -> list[dict[str, Any]]:
        return [
            span
            for span in cluster.all_spans()
            if span["attributes"].get("ditmesh.job_id", "").startswith(f"{job_id}-")
            and any(event["name"] == "stop" for event in span["events"])
        ]

    cluster.wait(lambda: bool(runs()), "the span of the leader's run")
    (run,) = runs()
    (stop,) = (event for event in run["events"] if event["name"] == "stop")
    assert stop["attributes"] == {"ditmesh.reason": "STOP_REASON_CANCELLED"}
    steps = [
        span
        for span in cluster.trace(run["trace_id"])
        if span["name"] == "step" and span["parent_span_id"] == run["span_id"]
    ]
    assert len(steps) >= 2
    return sum(span["end_unix_ns"] > stop["unix_ns"] for span in steps)


def test_exception_in_the_client_cancels(eight: Cluster) -> None:
    """An exception of the caller, Ctrl-C included, ends the job on the cluster."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eight.client.sample(**ENDLESS, on_progress=interrupt)
    wait_until_free(eight)


def test_deadline(eight: Cluster) -> None:
    """A job whose deadline passes ends on the ranks too, also for those who have more time."""
    job = {**ENDLESS, "job_id": "late"}
    with eight.client.start(**job, deadline_s=8.0) as hasty:
        wait_for_step(hasty, 1)
        with eight.client.start(**job) as patient, pytest.raises(DeadlineExceeded):
            patient.result()
        with pytest.raises(DeadlineExceeded):
            hasty.result()
    wait_until_free(eight)


def test_broken_stream_is_taken_up_again(eight: Cluster) -> None:
    """A job goes on while its connection is broken; the client finds it by its id."""
    accepted: list[Accepted] = []
    broken = 0
    with Proxy(eight.address) as proxy, Client(proxy.address) as client:
        with client.start(**random_job(6, steps=30)) as handle:
            for event in handle:
                if isinstance(event, Accepted):
                    accepted.append(event)
                elif isinstance(event, Progress) and event.step >= 4 and not broken:
                    broken = proxy.break_all()
                    assert broken
        result = handle.result()
    assert [event.resumed for event in accepted] == [False, True]
    assert executors(result) == [("group", 0, 30)]
    assert not result.summary.fallbacks


def test_finished_job_is_kept(eight: Cluster) -> None:
    """The result of a job whose client left is there for whoever comes back with id and spec."""
    job = random_job(7, job_id="kept")
    first = eight.client.sample(**job)
    with eight.client.start(**job) as handle:
        accepted = next(event for event in handle if isinstance(event, Accepted))
        again = handle.result()
    assert accepted.resumed
    assert again.summary == first.summary
    assert again.latent.tobytes() == first.latent.tobytes()


def test_abandoned_job_is_cancelled(eight: Cluster) -> None:
    """A job whose client left and did not come back ends after a while."""
    job = {**ENDLESS, "job_id": "abandoned"}
    with Client(eight.address) as client:
        wait_for_step(client.start(**job), 1)
    assert eight.snapshot().queue.running == 1
    wait_until_free(eight)
    with pytest.raises(JobCancelled, match="nobody came back"):
        eight.client.sample(**job)
