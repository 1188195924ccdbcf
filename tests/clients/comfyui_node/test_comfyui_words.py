"""What the nodes say on their faces: what a cluster has, and who made a picture."""

from __future__ import annotations

from types import SimpleNamespace

from clients.comfyui_node.cluster_text import cluster_text
from clients.comfyui_node.report import Report

from .fakes import card


def test_the_cluster_in_words() -> None:
    """Group, queue and models, each on a line; or what is wrong."""
    group = SimpleNamespace(state="ready", world_size=8, meshes=("ulysses=8",), problem="")
    queue = SimpleNamespace(running=1, waiting=2)
    local = SimpleNamespace(available=True)
    node, spare = SimpleNamespace(rank=0, device="cuda:0"), SimpleNamespace(rank=None, device="cpu")
    models = [card("flux1-dev")]
    cluster = SimpleNamespace(
        group=group, queue=queue, local=local, models=models, nodes=[node, spare]
    )
    assert cluster_text("here:1", cluster).splitlines() == [
        "here:1: 8 GPUs ready (ulysses=8)",
        "1 running, 2 waiting",
        "flux1-dev (flux, 12.0 B parameters; group)",
    ]
    node.device = "cpu"
    assert "8 CPU processes ready" in cluster_text("here:1", cluster)
    group.state, group.problem, cluster.models = "none", "no node answers", []
    assert "the coordinator samples itself: no node answers" in cluster_text("here:1", cluster)
    local.available = False
    assert "nothing can sample" in cluster_text("here:1", cluster)


def test_a_fallback_is_told_with_its_reason() -> None:
    """Who went on, from which step, and why."""
    note = SimpleNamespace(
        at_step=3, target="local", reason="GROUP_LOST", message="a rank died", source="group"
    )
    part = SimpleNamespace(
        executor="local", ranks=1, mesh="", first_step=3, end_step=8, seconds=2.0, epoch=0
    )
    summary = SimpleNamespace(
        segments=[part],
        fallbacks=[note],
        queue_seconds=1.5,
        run_seconds=2.5,
        trace_id="",
        job_id="j",
    )
    assert Report.whole(summary).lines == (
        "the coordinator's own sampler: 5 steps in 2.00 s",
        "from step 3 on the coordinator's own sampler: a rank died",
        "waited 1.5 s",
    )
