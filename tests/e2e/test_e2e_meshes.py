"""Other meshes than Ulysses 8: one rank, ring, mixed, split over the branches of guidance."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.clusters import Clusters
from tests.e2e.jobs import golden_difference, golden_job
from tests.sampling.golden_cases import golden_names, load_golden

pytestmark = pytest.mark.timeout(300)

AWKWARD = [name for name in golden_names() if "t77_13" in name]
"""Nothing divides by 8 in these, and the prompts differ in length."""
GUIDED = [name for name in golden_names() if "cfg3" in name]


def check(cluster: Cluster, name: str, mesh: str) -> None:
    """A golden case on the group, on that mesh of it."""
    case = load_golden(name)
    result = cluster.client.sample(**golden_job(case, fallback="forbid"))
    assert golden_difference(case, result) <= case.tolerance
    assert [segment.mesh for segment in result.summary.segments] == [mesh]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in {*AWKWARD, *GUIDED} else pytest.mark.slow)
        for name in golden_names()
    ],
)
def test_one_rank(name: str, clusters: Clusters) -> None:
    """A group of one node gives ComfyUI's latent."""
    check(clusters.get(ranks=1), name, "single")


@pytest.mark.parametrize("name", AWKWARD)
def test_ring(name: str, clusters: Clusters) -> None:
    """Three ranks in a ring do."""
    cluster = clusters.get(ranks=3, options=("--mesh", "ring=3"))
    check(cluster, name, "ring=3")


@pytest.mark.parametrize("name", sorted({*AWKWARD, *GUIDED}))
def test_mixed_and_split(name: str, clusters: Clusters) -> None:
    """Eight ranks, Ulysses 4 by ring 2, with half of them on each branch when there are two."""
    cluster = clusters.get(ranks=8, options=("--mesh", "ulysses=4,ring=2", "--cfg-split"))
    mesh = "ulysses=4 cfg=2" if name in GUIDED else "ulysses=4 ring=2"
    check(cluster, name, mesh)
