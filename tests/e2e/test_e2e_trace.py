"""The trace of a job says where its time went."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from bench.accounting import account
from tests.e2e.cluster import Cluster
from tests.e2e.jobs import random_job

pytestmark = pytest.mark.timeout(300)

STEPS = 12
SEED = 2_600
"""Of this test alone: for what the coordinator knows there is nothing to receive."""
CALL = "ditmesh.v1.SamplerService/Sample"
RUN = "ditmesh.v1.NodeService/Run"
LEAST_SHARE = 0.9
"""Of a job's time that named spans account for, whatever else the machine does; the benchmarks
demand 0.98 of one that is at rest.
"""

Span = dict[str, Any]


def traced_job(cluster: Cluster) -> list[Span]:
    """The spans of a job on eight ranks, from the client's call on."""
    with cluster.traced_client() as client:
        client.cluster()  # connects
        result = client.sample(**random_job(SEED, steps=STEPS, size=(1, 48, 48), fallback="forbid"))
    trace_id = result.summary.trace_id
    wanted = Counter({("client", CALL): 1, ("coordinator", CALL): 1, ("gpu_node", RUN): 8})

    def told() -> Counter[tuple[str, str]]:
        return Counter((span["service"], span["name"]) for span in cluster.trace(trace_id))

    cluster.wait(lambda: told() >= wanted, "every span of the trace")
    return cluster.trace(trace_id)


def within(trace: list[Span], parent: Span) -> list[Span]:
    """The spans that a span is the parent of, in the order in which they began."""
    found = (span for span in trace if span["parent_span_id"] == parent["span_id"])
    return sorted(found, key=lambda span: int(span["start_unix_ns"]))


def names(spans: list[Span]) -> list[str]:
    return [span["name"] for span in spans]


def follow_on_one_another(spans: list[Span]) -> bool:
    """Whether each ends before the next begins."""
    return all(int(a["end_unix_ns"]) <= int(b["start_unix_ns"]) for a, b in pairwise(spans))


def test_every_part_of_a_job_has_a_span(eight: Cluster) -> None:
    """What the coordinator does, then what the leader does, step by step with the transformer in
    each; of the other ranks only what is theirs alone. Little of a job's time is in no span.
    """
    trace = traced_job(eight)
    (call,) = (span for span in trace if span["service"] == "client")
    (served,) = within(trace, call)
    (job,) = (span for span in within(trace, served) if span["name"] == "job")
    stages = within(trace, job)
    assert names(stages) == ["admit", "receive", "check", "queue", "run", "answer"]
    assert follow_on_one_another(stages)

    run = within(trace, stages[names(stages).index("run")])
    ranks = [span for span in run if span["name"] == RUN]
    mine = [span for span in run if span["name"] != RUN]
    assert (names(mine), len(ranks)) == (["prepare", "result"], 8)
    assert follow_on_one_another(mine)

    work = {rank["instance"]: within(trace, rank) for rank in ranks}
    leader = max(work, key=lambda instance: len(work[instance]))
    steps = ["agree", "step"] * STEPS
    ready = ["receive", "inputs", "wait"]
    assert names(work[leader]) == [*ready, *steps, "agree", "finish", "send"]
    assert all(names(spans) == ready for instance, spans in work.items() if instance != leader)
    assert all(map(follow_on_one_another, work.values()))
    for span in work[leader]:
        inner = ["transformer"] if span["name"] == "step" else []
        assert names(within(trace, span)) == inner

    found = account(trace)
    assert found.share >= LEAST_SHARE, found
    assert max(found.by_name, key=lambda name: found.by_name[name]) == "transformer"
