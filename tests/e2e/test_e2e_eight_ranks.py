"""Jobs on the ranks and on the local sampler, against ComfyUI and one another."""

from __future__ import annotations

import pytest

from ditmesh.client import SampleResult
from tests.e2e.cluster import LOCAL_MODEL, Cluster
from tests.e2e.jobs import (
    any_job,
    difference,
    executors,
    golden_difference,
    golden_job,
    random_job,
)
from tests.sampling.golden_cases import GoldenCase, golden_names, ksampler_cases, load_golden

pytestmark = pytest.mark.timeout(300)

RANDOM_JOBS = [
    *range(12),
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 50)),
]

FURTHER = {
    name: case for name, case in ksampler_cases().items() if case.flow.time_shift == "exponential"
}
"""KSampler's options: step windows, masks, batch positions, shifts of Flux's own kind."""


def check(case: GoldenCase, result: SampleResult, executor: str) -> None:
    assert {segment.executor for segment in result.summary.segments} == {executor}
    assert golden_difference(case, result) <= case.tolerance


@pytest.mark.parametrize("name", golden_names())
def test_golden_case(name: str, eight: Cluster) -> None:
    """Eight ranks, and the local sampler on request, give ComfyUI's latent: 1e-4 at 8 steps."""
    case = load_golden(name)
    result = eight.client.sample(**golden_job(case, fallback="forbid"))
    check(case, result, "group")
    assert [(s.ranks, s.mesh) for s in result.summary.segments] == [(8, "ulysses=8")]
    assert not result.summary.fallbacks
    local = eight.client.sample(**golden_job(case, fallback="local_only"))
    check(case, local, "local")
    assert not local.summary.fallbacks  # it was asked for


@pytest.mark.parametrize("name", FURTHER)
def test_ksampler_case(name: str, two: Cluster) -> None:
    """So do ranks, however many, with KSampler's step windows, masks, batch positions and shifts.

    None of these depends on the mesh: two ranks show it in a third of the time.
    """
    case = FURTHER[name]
    check(case, two.client.sample(**golden_job(case)), "group")
    check(case, two.client.sample(**golden_job(case, fallback="local_only")), "local")


@pytest.mark.parametrize("seed", RANDOM_JOBS)
def test_random_job(seed: int, eight: Cluster) -> None:
    """Any sampler, schedule, size, guidance and text lengths: eight ranks and one agree to 1e-4."""
    job = any_job(seed)
    group = eight.client.sample(**job)
    assert executors(group) == [("group", 0, group.summary.segments[-1].end_step)]
    local = eight.client.sample(**{**job, "fallback": "local_only"})
    assert difference(group.latent, local.latent) <= 1e-4


def test_model_that_only_the_local_sampler_has(eight: Cluster) -> None:
    """It is sampled there, and the summary says why."""
    result = eight.client.sample(**random_job(1, model=LOCAL_MODEL))
    assert executors(result) == [("local", 0, 8)]
    assert [(f.reason, f.target) for f in result.summary.fallbacks] == [
        ("MODEL_NOT_ON_GROUP", "local")
    ]
    expected = eight.client.sample(**random_job(1))
    assert difference(result.latent, expected.latent) <= 1e-4
