"""Ranks that die or hang in the middle of a job."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ditmesh.client import Client, Progress, SampleResult
from ditmesh.errors import Unavailable
from ditmesh.telemetry import render_trace
from tests.e2e.cluster import MODEL, Cluster
from tests.e2e.jobs import (
    difference,
    executors,
    golden_difference,
    golden_job,
    random_job,
)
from tests.sampling.golden_cases import load_golden

pytestmark = pytest.mark.timeout(300)

LONG = load_golden("flux_dpmpp_2m_karras_n20_cfg1_d1_b1_16x16")
"""20 steps of a sampler with a history: a few seconds on eight ranks."""
HURT_AT = 6
UNDISTURBED = 1e-4


def sample_and_hurt(
    client: Client, hurt: Callable[[], object], **changes: Any
) -> tuple[SampleResult, int]:
    """The long job, `hurt()` in its midst; and how many steps were reported."""
    steps: list[int] = []

    def on_progress(progress: Progress) -> None:
        # Of steps that come fast, not all are told of.
        if progress.step >= HURT_AT and max(steps, default=0) < HURT_AT:
            hurt()
        steps.append(progress.step)

    result = client.sample(**golden_job(LONG, **changes), on_progress=on_progress)
    assert max(steps, default=0) >= HURT_AT, "it came to no harm"
    return result, len(steps)


def check_long(result: SampleResult, steps: int, cluster: Cluster) -> None:
    """Right, undisturbed to the eye, and with at most one step done twice."""
    assert golden_difference(LONG, result) <= LONG.tolerance
    whole = cluster.client.sample(**golden_job(LONG, fallback="local_only"))
    assert difference(result.latent, whole.latent) <= UNDISTURBED
    assert sum(f.repeated_steps for f in result.summary.fallbacks) <= 1
    assert steps <= LONG.steps + 1
    segments = result.summary.segments
    assert segments[0].first_step == 0
    assert segments[-1].end_step == LONG.steps
    assert all(a.end_step - b.first_step in (0, 1) for a, b in pairwise(segments))


@pytest.mark.parametrize("rank", [0, 5])
def test_killed_rank_without_another_group(rank: int, brittle: Cluster) -> None:
    """The job ends on the local sampler, repeats at most one step, and one trace tells why."""
    with brittle.traced_client() as client, brittle.no_restarts():
        result, steps = sample_and_hurt(client, lambda: brittle.kill(rank))
    check_long(result, steps, brittle)
    group, local = result.summary.segments
    assert (group.executor, group.ranks, local.executor) == ("group", 8, "local")
    assert group.end_step >= HURT_AT
    (moved,) = result.summary.fallbacks
    assert (moved.source, moved.target, moved.reason) == ("group", "local", "GROUP_LOST")
    check_trace(brittle, result, killed=rank)


def check_trace(cluster: Cluster, result: SampleResult, *, killed: int) -> None:
    """One trace has all that happened, in the order in which it did."""
    trace_id = result.summary.trace_id
    wanted = Counter(
        {
            ("client", "ditmesh.v1.SamplerService/Sample"): 1,
            ("coordinator", "ditmesh.v1.SamplerService/Sample"): 1,
            ("coordinator", "job"): 1,
            ("coordinator", "queue"): 2,
            ("coordinator", "run"): 2,
            ("coordinator", "fallback"): 1,
            ("gpu_node", "ditmesh.v1.NodeService/Run"): 7,  # the dead cannot tell
            ("local_sampler", "ditmesh.v1.NodeService/Run"): 1,
        }
    )

    names = {name for _, name in wanted}

    def told() -> Counter[tuple[str, str]]:
        """How often each span came that says who had the job; further ones say what it did."""
        spans = [span for span in cluster.trace(trace_id) if span["name"] in names]
        return Counter((span["service"], span["name"]) for span in spans)

    cluster.wait(lambda: told() >= wanted, "every span of the trace")
    story = render_trace(cluster.spans, trace_id)
    assert told() == wanted, story
    # What a rank recorded within its run, and the run itself, are written apart: the dead may have
    # told of its steps.
    spans = [span for span in cluster.trace(trace_id) if span["name"] in names]
    first, second = sorted(
        (span for span in spans if span["name"] == "run"), key=lambda span: span["start_unix_ns"]
    )
    (fallback,) = (span for span in spans if span["name"] == "fallback")
    by_id = {span["span_id"]: span for span in spans}
    # What the dead rank had told hangs from a span that it could not end.
    ended = {span["instance"] for span in spans if span["name"] == "ditmesh.v1.NodeService/Run"}
    roots = [
        span
        for span in spans
        if span["parent_span_id"] not in by_id
        and (span["service"] != "gpu_node" or span["instance"] in ended)
    ]
    assert [(root["service"], root["kind"]) for root in roots] == [("client", "CLIENT")], story
    assert first["status"] == "ERROR", story
    assert f"rank {killed}" in first["status_message"], story
    assert fallback["attributes"]["ditmesh.reason"] == "GROUP_LOST", story
    assert first["end_unix_ns"] <= fallback["start_unix_ns"] <= second["start_unix_ns"], story
    for node in (span for span in spans if span["name"] == "ditmesh.v1.NodeService/Run"):
        run = first if node["service"] == "gpu_node" else second
        assert by_id[node["parent_span_id"]] is run, story
    (local,) = (
        span
        for span in spans
        if span["service"] == "local_sampler" and span["name"] == "ditmesh.v1.NodeService/Run"
    )
    first_step = result.summary.segments[1].first_step
    steps = [span for span in cluster.trace(trace_id) if span["parent_span_id"] == local["span_id"]]
    assert sum(span["name"] == "step" for span in steps) == LONG.steps - first_step, story
    # Of steps that come fast not all are told of, but the last one is.
    done = [event["attributes"]["ditmesh.step"] for event in local["events"]]
    assert done == sorted({*done, LONG.steps}), story
    assert done[0] > first_step, story


def test_fallback_forbidden(brittle: Cluster) -> None:
    """Then a lost group is an error, UNAVAILABLE with the time after which to try again."""
    with brittle.no_restarts():
        with pytest.raises(Unavailable) as lost:
            sample_and_hurt(brittle.client, lambda: brittle.kill(3), fallback="forbid")
        assert (lost.value.retry_after_s or 0) > 0
        with pytest.raises(Unavailable) as none:
            brittle.client.sample(**random_job(1, fallback="forbid"))
        assert (none.value.retry_after_s or 0) > 0
        result = brittle.client.sample(**random_job(1))
    (moved,) = result.summary.fallbacks
    assert (moved.reason, moved.target, moved.at_step) == ("NO_GROUP", "local", 0)
    brittle.wait_for_group()
    assert executors(brittle.client.sample(**random_job(1, fallback="forbid"))) == [("group", 0, 8)]


def test_predict_goes_on_without_its_group(brittle: Cluster) -> None:
    """A stream of calls whose group dies is answered by the local sampler, then by the group."""
    x, conditioning = np.ones((1, 16, 8, 8), np.float32), random_job(1)["positive"]
    with brittle.client.predict_stream(MODEL) as stream:
        by_group = stream.predict(x, 0.5, conditioning)
        assert (stream.executor, stream.fallback_reason) == ("group", "")
        with brittle.no_restarts():
            brittle.kill(2)
            by_local = stream.predict(x, 0.5, conditioning)
            assert stream.executor == "local"
            assert stream.fallback_reason
        brittle.wait_for_group()
        again = stream.predict(x, 0.5, conditioning)
        assert (stream.executor, stream.fallback_reason) == ("group", "")
    assert np.abs(by_local - by_group).max() <= 1e-5
    assert np.array_equal(again, by_group)


@pytest.mark.parametrize("rank", [0, 6])
def test_killed_rank_and_a_smaller_group(rank: int, eight: Cluster) -> None:
    """The survivors form a group, which ends the job; the node comes back and the group grows."""
    before = eight.snapshot().group.epoch
    with eight.no_restarts():
        result, steps = sample_and_hurt(eight.client, lambda: eight.kill(rank))
    check_long(result, steps, eight)
    whole, smaller = result.summary.segments
    assert (whole.ranks, whole.epoch) == (8, before)
    assert smaller.executor == "group"
    assert 1 < smaller.ranks < 8
    assert smaller.epoch > before
    (moved,) = result.summary.fallbacks
    assert (moved.source, moved.target, moved.reason) == ("group", "group", "GROUP_LOST")
    eight.wait_for_group(8)
    again = eight.client.sample(**golden_job(LONG))
    assert [(s.ranks, s.mesh) for s in again.summary.segments] == [(8, "ulysses=8")]
    assert golden_difference(LONG, again) <= LONG.tolerance


@pytest.mark.parametrize("rank", [0, 4])
def test_stopped_rank(rank: int, eight: Cluster) -> None:
    """A rank that hangs is noticed by its silence, long before a collective would time out."""
    victim = eight.ranks()[rank]
    result, steps = sample_and_hurt(eight.client, lambda: os.kill(victim, signal.SIGSTOP))
    try:
        check_long(result, steps, eight)
        told = [(f.reason, f.message) for f in result.summary.fallbacks]
        assert [s.executor for s in result.summary.segments] == ["group", "group"], told
        assert {node.pid for node in eight.snapshot().nodes if node.rank is not None}.isdisjoint(
            {victim}
        )
    finally:
        os.kill(victim, signal.SIGCONT)
    eight.wait_for_group(8)
