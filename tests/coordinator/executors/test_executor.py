"""An executor of several members over real streams: what each end of a stream means."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from typing import Any

import pytest

from coordinator.executors import executor as executors
from coordinator.executors.stopping import StopRequest
from coordinator.lifecycle.patience import Patience
from ditmesh import errors, telemetry
from ditmesh.errors import DitmeshError
from ditmesh.v1 import node_pb2 as pb
from tests.coordinator.executors.members import (
    Act,
    ScriptedNode,
    aborting,
    ending,
    executor,
    hanging,
    work,
)
from tests.coordinator.fakes import PATIENCE_S, run, until


def test_members_get_each_byte_once_and_the_leader_answers() -> None:
    """Every state in order, then the result; all members start, none is sent a tensor twice."""

    async def test() -> None:
        async with executor() as (made, nodes):
            steps: list[int] = []
            end = await work(made, steps)
            assert steps == [1, 2]
            assert end.result is not None
            assert len(end.tensors) == 1
            nbytes = 4 * (128 + 32 + 700_000)
            assert [node.came for node in nodes] == [[nbytes], [nbytes]]
            # The leader's answer does not wait for the other.
            await until(lambda: [node.started for node in nodes] == [1, 1])

    run(test())


def test_a_job_comes_on_a_stream_that_is_open_and_is_still_part_of_its_own_trace() -> None:
    """The second job opens no stream; what each belongs to is said in its message."""

    async def test() -> None:
        async with executor() as (made, nodes):
            traces = [telemetry.TraceContext.new_root() for _ in range(2)]
            for number, trace in enumerate(traces, 1):
                with telemetry.span("job", parent=trace):
                    await work(made)
                await until(lambda number=number: {n.streams for n in nodes} == {number + 1})  # type: ignore[misc]
            for node in nodes:
                opened, orders = zip(*node.orders, strict=True)
                assert opened == (1, 2)
                told = [telemetry.extract([("traceparent", order.traceparent)]) for order in orders]
                assert [t.trace_id for t in told if t] == [trace.trace_id for trace in traces]

    run(test())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", ["receive", "prepare", "ready", "end"])
@pytest.mark.parametrize(
    "end",
    [
        ending,
        aborting(errors.StaleEpoch("another group")),
        aborting(errors.Draining("going")),
        aborting(errors.GroupLost("a rank died")),
        aborting(errors.InternalError("a defect")),
    ],
    ids=["shut down", "stale", "draining", "lost", "defect"],
)
def test_a_member_that_ends_its_stream_is_a_lost_group(rank: int, stage: str, end: Act) -> None:
    """At any stage and by any status: the job goes on elsewhere; it is never cancelled by it."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[rank].at[stage] = end
            if stage in ("ready", "end"):
                # The other one has started: it waits in a collective that this one is missing in.
                nodes[1 - rank].at["step0" if stage == "ready" else "end"] = hanging
                nodes[1 - rank].at["end"] = hanging
            with pytest.raises(errors.GroupLost, match=f"rank {rank}"):
                await work(made)

    run(test())


def test_every_step_that_was_finished_is_reported_before_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the leader still sends after another member died is not dropped."""
    monkeypatch.setattr("coordinator.executors.together._AFTERMATH_S", PATIENCE_S)

    async def test() -> None:
        async with executor() as (made, nodes):

            async def later(node: ScriptedNode, context: Any) -> None:
                await asyncio.sleep(0.1)

            nodes[0].at["step1"] = later
            nodes[0].at["end"] = aborting(errors.GroupLost("its collective broke off"))
            nodes[1].at["end"] = ending
            steps: list[int] = []
            with pytest.raises(errors.GroupLost, match="rank 1"):
                await work(made, steps)
            assert steps == [1, 2]

    run(test())


def test_a_result_that_a_rank_is_known_not_to_share_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranks compare the last state as well, while the leader's result is on its way."""
    noticed: list[BaseException] = []

    def translate(error: BaseException) -> BaseException:
        noticed.append(translated(error))
        return noticed[-1]

    async def wait(node: ScriptedNode, context: Any) -> None:
        await until(lambda: noticed)

    translated = executors.translate
    monkeypatch.setattr(executors, "translate", translate)
    monkeypatch.setattr("coordinator.executors.together._AFTERMATH_S", PATIENCE_S)

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[0].at["end"] = wait
            nodes[1].at["end"] = aborting(errors.RanksDiffer("rank 1 is at step 2"))
            with pytest.raises(errors.RanksDiffer, match="rank 1 is at step 2"):
                await work(made)

    run(test())


def test_ranks_that_differ_are_told_whoever_else_fails() -> None:
    """The others lose their group by it, and one may be gone: what counts is that no one knows
    whose state is right.
    """

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[0].at["end"] = aborting(errors.GroupLost("its collective broke off"))
            nodes[1].at["end"] = aborting(errors.RanksDiffer("rank 1 is at step 2"))
            with pytest.raises(errors.RanksDiffer, match="rank 1 is at step 2"):
                await work(made)

    run(test())


@pytest.mark.parametrize(
    ("raised", "kind", "name"),
    [
        (errors.InvalidRequest("no", field="job.x"), errors.InvalidRequest, "group"),
        (errors.BadResult("NaN"), errors.BadResult, "group"),
        (errors.DamagedModel("torn"), errors.ExecutorFailed, "group"),
        (errors.DamagedModel("torn"), errors.DamagedModel, "local"),
        (errors.InternalError("a defect"), errors.ExecutorFailed, "local"),
    ],
)
def test_what_a_member_says_of_the_work_is_told(
    raised: DitmeshError, kind: type[DitmeshError], name: str
) -> None:
    """A wrong request stays one; what another executor may do better can go on there."""

    async def test() -> None:
        async with executor(name) as (made, nodes):
            nodes[0].at["prepare"] = aborting(raised)
            with pytest.raises(DitmeshError) as caught:
                await work(made)
            assert type(caught.value) is kind

    run(test())


def test_a_stop_while_members_prepare_takes_effect_at_once() -> None:
    """Loading may take minutes; nobody has started."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[1].at["prepare"] = hanging
            stop = StopRequest()
            working = asyncio.create_task(work(made, stop=stop))
            await until(lambda: nodes[1].came)
            stop.set(pb.STOP_REASON_CANCELLED)
            end = await asyncio.wait_for(working, PATIENCE_S)
            assert end.stopped == pb.STOP_REASON_CANCELLED
            assert [node.started for node in nodes] == [0, 0]

    run(test())


def test_a_stop_asked_for_before_the_run_is_heard() -> None:
    """No matter how early."""

    async def test() -> None:
        async with executor() as (made, nodes):
            stop = StopRequest()
            stop.set(pb.STOP_REASON_DEADLINE)
            stop.set(pb.STOP_REASON_CANCELLED)
            end = await work(made, stop=stop)
            assert end.stopped == pb.STOP_REASON_DEADLINE
            assert nodes[0].started == 0

    run(test())


def test_the_leaders_result_does_not_wait_for_a_member_that_hangs() -> None:
    """The job is whole; the next one finds the member lost."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[1].at["end"] = hanging
            end = await asyncio.wait_for(work(made), PATIENCE_S)
            assert end.result is not None

    run(test())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_run_without_a_step_waits_for_all_members(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else shows that they have begun, and the next run must not find them before this
    one; but not for one that hangs.
    """
    monkeypatch.setattr("coordinator.executors.executor._SETTLE_S", 0.3 if hangs else 20.0)

    async def test() -> None:
        async with executor() as (made, nodes):

            async def late(node: ScriptedNode, context: Any) -> None:
                await asyncio.sleep(0.1)

            nodes[0].steps = 0
            nodes[1].at["end"] = hanging if hangs else late
            await work(made)
            assert nodes[1].finished == (0 if hangs else 1)

    run(test())


@pytest.mark.parametrize("stage", ["receive", "prepare", "step0"])
def test_a_member_that_falls_silent_ends_the_run_at_any_stage(stage: str) -> None:
    """Whatever its stream does: its link knows first, and the others are not waited for."""

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[0].at[stage] = hanging
            nodes[1].at["end"] = hanging
            working = asyncio.create_task(work(made))
            await until(lambda: nodes[0].came or stage == "receive")
            made.members[0].doubt("it has said nothing for 5 s")
            with pytest.raises(errors.GroupLost, match=r"rank 0 .* said nothing for 5 s"):
                await asyncio.wait_for(working, PATIENCE_S)

    run(test())


def test_a_member_that_never_gets_ready_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that hangs has an end."""
    monkeypatch.setattr("coordinator.executors.executor._PREPARE_S", 4.0)

    async def test() -> None:
        async with executor() as (made, nodes):
            nodes[1].at["prepare"] = hanging
            with pytest.raises(errors.GroupLost, match=r"rank 1 .* not answered for 4 s"):
                await work(made)

    run(test())


@pytest.mark.parametrize("stage", ["prepare", "step1"])
def test_a_local_sampler_that_hangs_is_ended(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor starts it again; the job can go on. It lives, so nothing else would end it."""
    monkeypatch.setattr("coordinator.executors.executor._PREPARE_S", 0.3)
    monkeypatch.setattr("coordinator.executors.executor.Patience", lambda: Patience(first_s=0.5))

    async def test() -> None:
        async with executor("local") as (made, nodes):
            nodes[0].at[stage] = hanging
            process = subprocess.Popen(["sleep", "60"])
            (link,) = made.members
            link._ours, link._pid = True, process.pid
            with pytest.raises(errors.ExecutorFailed, match="the local sampler"):
                await work(made)
            assert process.wait(PATIENCE_S) == -signal.SIGKILL
            assert not link.up

    run(test())
