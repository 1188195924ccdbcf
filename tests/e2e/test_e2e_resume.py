"""Jobs that stop after a step and go on in fresh processes, from what the wire brought back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ditmesh.client import SampleResult
from ditmesh.sampling import SAMPLERS
from tests.e2e.cluster import Cluster
from tests.e2e.clusters import Clusters
from tests.e2e.jobs import difference, executors, random_job

pytestmark = pytest.mark.timeout(300)

STEPS = 6
"""Twice what the longest history has values: states of no, partial and full history."""
JOBS = {
    name: random_job(i, sampler=name, steps=STEPS, size=(1, 4, 6))
    for i, name in enumerate(SAMPLERS)
}


@dataclass(frozen=True)
class Sampled:
    """A job in one go, and stopped after each of its steps, on two ranks."""

    whole: SampleResult
    after: dict[int, SampleResult]


@pytest.fixture(scope="module")
def sampled(clusters: Clusters) -> dict[str, Sampled]:
    """Every sampler's job, on a cluster that is gone before any of the states is used."""
    client = clusters.get(ranks=2).client
    done = {
        name: Sampled(
            client.sample(**job),
            {
                k: client.sample(**job, stop_after_step=k, return_state=True)
                for k in range(1, STEPS + 1)
            },
        )
        for name, job in JOBS.items()
    }
    clusters.stop()
    return done


@pytest.fixture
def fresh(sampled: dict[str, Sampled], deaf: Cluster) -> Cluster:
    """Other processes that form the same mesh."""
    return deaf


@pytest.mark.parametrize("name", JOBS)
def test_same_bits_on_the_same_mesh(name: str, sampled: dict[str, Sampled], fresh: Cluster) -> None:
    """After any step, the state continued on as many ranks gives the bits of the unbroken job."""
    for k, stopped in sampled[name].after.items():
        assert stopped.state is not None
        assert executors(stopped) == [("group", 0, k)]
        result = fresh.client.sample(**JOBS[name], state=stopped.state)
        assert executors(result) == [("group", k, STEPS)]
        assert np.array_equal(result.latent, sampled[name].whole.latent), f"from step {k}"


@pytest.mark.parametrize("name", JOBS)
def test_close_in_the_fallback(name: str, sampled: dict[str, Sampled], fresh: Cluster) -> None:
    """After any step, the local sampler takes the state to within 1e-4 of the unbroken job."""
    for k, stopped in sampled[name].after.items():
        result = fresh.client.sample(**JOBS[name], state=stopped.state, fallback="local_only")
        assert executors(result) == [("local", k, STEPS)]
        assert difference(result.latent, sampled[name].whole.latent) <= 1e-4, f"from step {k}"


@pytest.mark.parametrize("name", JOBS)
def test_close_from_the_fallback(name: str, sampled: dict[str, Sampled], fresh: Cluster) -> None:
    """A state of the local sampler goes on on the ranks, to within 1e-4."""
    job = JOBS[name]
    stopped = fresh.client.sample(
        **job, stop_after_step=STEPS // 2, return_state=True, fallback="local_only"
    )
    result = fresh.client.sample(**job, state=stopped.state)
    assert executors(result) == [("group", STEPS // 2, STEPS)]
    assert difference(result.latent, sampled[name].whole.latent) <= 1e-4


@pytest.mark.parametrize(("name", "k"), [(name, 1 + i % 3) for i, name in enumerate(JOBS)])
def test_same_bits_on_eight_ranks(name: str, k: int, eight: Cluster) -> None:
    """On eight ranks too, a job in two parts gives the bits of the job in one."""
    job = {**JOBS[name], "steps": 4}
    whole = eight.client.sample(**job)
    stopped = eight.client.sample(**job, stop_after_step=k, return_state=True)
    result = eight.client.sample(**job, state=stopped.state)
    assert executors(result) == [("group", k, 4)]
    assert np.array_equal(result.latent, whole.latent)
