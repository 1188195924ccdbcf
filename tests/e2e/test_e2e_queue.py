"""Jobs that follow one another without a rest on the same ranks."""

from __future__ import annotations

from typing import Any

import pytest

from ditmesh.client import Progress
from ditmesh.errors import JobCancelled
from tests.e2e.cluster import Cluster
from tests.e2e.jobs import executors, random_job

pytestmark = pytest.mark.timeout(300)

SEEDS = range(20, 24)


def job(seed: int) -> dict[str, Any]:
    return random_job(seed, steps=seed - 19, sampler="dpmpp_2m", fallback="forbid")


def test_queued_jobs_do_not_mix(eight: Cluster) -> None:
    """Each has the bits that it has alone, among others that are cancelled: while they wait, when
    they are next, and while they run. The group is not lost by any of it.
    """
    alone = {seed: eight.client.sample(**job(seed)).latent.tobytes() for seed in SEEDS}
    epoch = eight.snapshot().group.epoch
    queued = [eight.client.start(**job(seed)) for seed in (*SEEDS, *reversed(SEEDS), *SEEDS)]
    unwanted = [eight.client.start(**random_job(30 + n, steps=10_000)) for n in range(3)]
    queued += [eight.client.start(**job(seed)) for seed in SEEDS]
    unwanted[2].cancel()
    for handle, seed in zip(queued[:12], (*SEEDS, *reversed(SEEDS), *SEEDS), strict=True):
        result = handle.result()
        assert result.latent.tobytes() == alone[seed]
        assert executors(result) == [("group", 0, seed - 19)]
    unwanted[0].cancel()
    next(event for event in unwanted[1] if isinstance(event, Progress) and event.step >= 2)
    unwanted[1].cancel()
    for handle, seed in zip(queued[12:], SEEDS, strict=True):
        assert handle.result().latent.tobytes() == alone[seed]
    for handle in unwanted:
        with pytest.raises(JobCancelled):
            handle.result()
    assert eight.snapshot().group.epoch == epoch
