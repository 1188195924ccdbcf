"""One group at a time: what belongs to an old epoch is refused by every node, from anybody."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import grpc
import pytest

from ditmesh.client import Progress
from ditmesh.v1 import job_pb2, node_pb2, node_pb2_grpc
from tests.chaos.site import Site
from tests.e2e.jobs import executors, random_job

STEPS = 200
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), ranks=2) as running:
        yield running


def test_old_epochs_are_refused(site: Site) -> None:
    """A coordinator that died in the middle of a job leaves one group behind, and its successor
    makes one group of it: no node takes a run, a call, a membership or a farewell of the old one.
    """
    old = site.snapshot().group.epoch
    with site.user.start(**random_job(1, steps=STEPS)) as handle:
        next(event for event in handle if isinstance(event, Progress) and event.step >= 5)
        os.kill(site.coordinator_pid(), signal.SIGKILL)
        result = handle.result()
    new = site.snapshot().group.epoch
    assert new > old
    assert executors(result) == [("group", result.summary.segments[0].first_step, STEPS)]
    assert result.summary.segments[0].epoch == new
    for wire in site.wires:
        with grpc.insecure_channel(wire.target) as channel:
            node = node_pb2_grpc.NodeServiceStub(channel)
            run = node_pb2.RunRequest(
                job=node_pb2.RunJob(epoch=old, mesh=0, job=job_pb2.JobSpec(job_id="old"))
            )
            call = node_pb2.PredictStepRequest(
                open=node_pb2.PredictStepOpen(epoch=old, mesh=0, model="tiny-flux")
            )
            join = node_pb2.JoinGroupRequest(epoch=old, rank=0, world_size=1, rendezvous="a:1")
            assert _refusal(lambda node=node, run=run: list(node.Run(iter([run]))))
            assert _refusal(lambda node=node, call=call: list(node.PredictStep(iter([call]))))
            assert _refusal(lambda node=node, join=join: node.JoinGroup(join))
            node.LeaveGroup(node_pb2.LeaveGroupRequest(epoch=old))
            watched = next(iter(node.Watch(node_pb2.WatchRequest())))
            assert watched.epoch == watched.newest_epoch == new
    again = site.user.sample(**random_job(2, fallback="forbid"))
    assert again.summary.segments[0].epoch == new


def _refusal(call: object) -> bool:
    assert callable(call)
    with pytest.raises(grpc.RpcError) as refused:
        call()
    assert refused.value.code() is grpc.StatusCode.ABORTED, refused.value
    return True


def test_an_orderly_restart_finds_its_nodes(site: Site) -> None:
    """Nodes that have left their group remember its epoch: the next one is greater at once."""
    old = site.snapshot().group.epoch
    stopped = site.coordinator_pid()
    os.kill(stopped, signal.SIGTERM)
    site.wait(lambda: site.coordinator_pid() != stopped, "another coordinator")
    site.wait(site.whole, "the group")
    assert site.snapshot().group.epoch > old
