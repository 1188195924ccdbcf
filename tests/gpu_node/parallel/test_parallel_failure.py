"""Ranks that die, hang or fail: the others are freed, and a new epoch goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from ditmesh import __version__
from ditmesh.mesh import MeshSpec
from ditmesh.models.model import LocalModel
from tests.gpu_node.parallel import on_rank
from tests.gpu_node.parallel.cases import EXACT, Case
from tests.ranks import Ranks

FOUR = MeshSpec((0, 1, 2, 3), ulysses=4)
SMALLER = {2: MeshSpec((0, 1), ulysses=2), 3: MeshSpec((0, 1, 2), ring=3)}
CASE = Case(18, 22, (77, 13))
TIMEOUT_S = 6.0
QUICK_S = 3.0
"""Well below the timeout: freed by the closed connection, not by waiting. Ranks measure by their
own clocks, from the moment in which a collective of theirs began.
"""


@pytest.fixture
def four() -> Iterator[Ranks]:
    """Four ranks in one group with a short timeout."""
    with Ranks(4) as ranks:
        ranks.run(on_rank.load, torch.float32)
        ranks.run(on_rank.join, 1, [FOUR], TIMEOUT_S)
        yield ranks


def reform(ranks: Ranks, survivors: list[int], local: LocalModel) -> None:
    """Have the survivors leave, form a smaller group, and give the right output again."""
    mesh = SMALLER[len(survivors)]
    for function, *args in (
        (on_rank.leave,),
        (on_rank.join, 2, [mesh], 20.0, survivors),
        (on_rank.evaluate, mesh, CASE),
    ):
        ranks.start(function, *args, ranks=survivors)
        answers = ranks.collect(survivors)
        for answer in answers.values():
            assert not isinstance(answer, BaseException), answer
    x_BCHW, branches = CASE.inputs()
    expected = local.evaluate(x_BCHW, on_rank.SIGMA, branches)
    for output, wanted in zip(answers[survivors[0]], expected, strict=True):
        assert (output - wanted).abs().max() < EXACT


@pytest.mark.parametrize("victim", [0, 3])
def test_a_killed_rank_frees_the_others_at_once(
    four: Ranks, local: LocalModel, victim: int
) -> None:
    """SIGKILL of any rank, the first included: GroupLost well before the timeout, then go on."""
    survivors = [rank for rank in range(4) if rank != victim]
    four.start(on_rank.until_lost, FOUR, CASE)
    four.wait_for(on_rank.EVALUATING, 4)
    four.signal(victim, signal.SIGKILL)
    for lost in four.collect(survivors).values():
        assert lost.evaluations > 0
        assert lost.waited_s < QUICK_S
        assert "lost the group of epoch 1" in lost.reason
    reform(four, survivors, local)


def test_a_stopped_rank_frees_the_others_at_the_timeout(four: Ranks, local: LocalModel) -> None:
    """SIGSTOP: the others wait as long as the group's timeout says, and not for ever."""
    survivors = [0, 2]
    four.start(on_rank.until_lost, FOUR, CASE)
    four.wait_for(on_rank.EVALUATING, 4)
    four.signal(1, signal.SIGSTOP)
    lost = four.collect([0, 2, 3]).values()
    assert all(rank.waited_s < TIMEOUT_S + QUICK_S for rank in lost)
    # The first ends its connections; whoever began later is freed by that.
    assert min(lost, key=lambda rank: rank.raised_at).waited_s > TIMEOUT_S - 1.0
    reform(four, survivors, local)
    # Once it runs again it finds itself out of the group, rather than in a group of its own.
    four.signal(1, signal.SIGCONT)
    assert "lost the group of epoch 1" in four.collect([1])[1].reason


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_first_rank_that_ends_frees_who_waits_for_its_decision(
    four: Ranks, local: LocalModel, end: signal.Signals
) -> None:
    """Killed: at once. Stopped: when the group's timeout is over. The others go on without it."""
    four.start(on_rank.decide_until_lost, FOUR)
    four.wait_for(on_rank.DECIDING, 4)
    four.signal(0, end)
    answers = four.collect([1, 2, 3]).values()
    assert all("lost the group of epoch 1" in reason for _, reason in answers)
    waited = [waited_s for waited_s, _ in answers]
    if end == signal.SIGKILL:
        assert max(waited) < QUICK_S
    else:
        assert TIMEOUT_S - 1.0 < max(waited) < TIMEOUT_S + QUICK_S
    reform(four, [1, 2, 3], local)


def test_abort_frees_a_waiting_thread(four: Ranks, local: LocalModel) -> None:
    """`abort` from a side thread ends a wait at once and for every rank that waits."""
    waiting = [0, 1, 2]
    four.start(on_rank.abort_while_waiting, FOUR, 0.5, ranks=waiting[1:])
    for delay, reason in four.collect(waiting[1:]).values():
        assert delay < QUICK_S
        assert "epoch 1" in reason
    reform(four, [1, 2], local)


def test_a_rank_that_fails_takes_the_group_with_it(four: Ranks) -> None:
    """An error in one rank's own computation keeps its name there and frees the others."""
    answers = four.run(on_rank.fail_locally, FOUR, CASE, 2)
    assert [error for error, _ in answers] == [
        *("GroupLost", "GroupLost", "OutOfMemoryError", "GroupLost")
    ]
    assert all(waited_s < QUICK_S for _, waited_s in answers)
    assert four.run(on_rank.use, FOUR) == [
        f"GroupLost: rank {rank} is no longer in epoch 1" for rank in range(4)
    ]


@pytest.mark.parametrize("culprit", [0, 2])
def test_no_rank_gets_beyond_the_step_that_they_differ_in(four: Ranks, culprit: int) -> None:
    """The leader has told of that step and of none after it: the state before it is one that all
    ranks had. Who differs from the leader says so, whoever is wrong.
    """
    answers = four.run(on_rank.miscompute, FOUR, CASE, culprit)
    told, ends = zip(*answers, strict=True)
    assert told[0] == [1, 2]
    assert all(steps in ([1], [1, 2]) for steps in told)
    assert ends[0] == "GroupLost"
    assert set(ends[1:]) <= {"GroupLost", "RanksDiffer"}
    if culprit:
        assert ends[culprit] == "RanksDiffer"
        assert ends.count("RanksDiffer") == 1
    else:
        assert "RanksDiffer" in ends


def test_joining_without_the_others_ends_in_time(local: LocalModel) -> None:
    """A rank whose group never comes together raises GroupLost at the timeout, and can retry."""
    with Ranks(2) as ranks:
        for epoch in (1, 2):
            ranks.start(on_rank.try_to_join, epoch, 2, 1.0, ranks=[0])
            duration, reason = ranks.collect([0])[0]
            assert duration < 1.0 + QUICK_S
            assert f"epoch {epoch} could not be formed" in reason
        ranks.run(on_rank.load, torch.float32)
        ranks.run(on_rank.join, 3, [SMALLER[2]])
        x_BCHW, branches = CASE.inputs()
        expected = local.evaluate(x_BCHW, on_rank.SIGMA, branches)
        output = ranks.run(on_rank.evaluate, SMALLER[2], CASE)[0]
        assert (output[0] - expected[0]).abs().max() < EXACT


def test_abort_ends_a_wait_for_others_at_once() -> None:
    """A rank that is told to abort while it waits for the others does, and withdraws: who comes
    later does not go on with it. Both can join the next epoch.
    """
    with Ranks(2) as ranks:
        ranks.start(on_rank.abort_while_joining, SMALLER[2], 0.2, ranks=[0])
        duration, reason = ranks.collect([0])[0]
        assert duration < QUICK_S
        assert reason == "epoch 1 was aborted while rank 0 waited"
        ranks.start(on_rank.try_to_join, 1, 2, 0.5, ranks=[1])
        assert "of 2 ranks, 0 did not come" in ranks.collect([1])[1][1]
        ranks.run(on_rank.join, 2, [SMALLER[2]])


def test_abort_ends_a_wait_inside_torch_at_once() -> None:
    """So does a rank that has met another which came, and then went away before it connected."""
    with Ranks(2) as ranks:
        ranks.start(on_rank.come_and_go, 1, ranks=[1])
        ranks.collect([1])
        ranks.start(on_rank.abort_while_joining, SMALLER[2], 1.0, ranks=[0])
        duration, reason = ranks.collect([0])[0]
        assert duration < 1.0 + QUICK_S
        assert "epoch 1 could not be formed" in reason
        ranks.run(on_rank.join, 2, [SMALLER[2]])


def test_ranks_of_several_versions_form_no_group() -> None:
    """They would fail at each job. They can form one as soon as all are of one version."""
    with Ranks(2) as ranks:
        for epoch, version, told in ((1, "0.0.9", "0.0.9"), (2, "", "unknown")):
            ranks.start(on_rank.come_and_go, epoch, version, ranks=[1])
            ranks.collect([1])
            ranks.start(on_rank.try_to_join, epoch, 2, 30.0, ranks=[0])
            duration, reason = ranks.collect([0])[0]
            assert duration < QUICK_S
            assert f"of versions {', '.join(sorted((__version__, told)))} of ditmesh" in reason
        ranks.run(on_rank.join, 3, [SMALLER[2]])


def test_epochs_leave_nothing_behind() -> None:
    """Joining and leaving again and again costs no descriptor and clears every global."""
    with Ranks(2) as ranks:
        ranks.run(on_rank.load, torch.float32)
        left = []
        for epoch in range(4):
            ranks.run(on_rank.join, epoch, [SMALLER[2]])
            ranks.run(on_rank.evaluate, SMALLER[2], CASE)
            left.append(ranks.run(on_rank.leave))
        assert left[1:] == [left[1]] * 3
        for globals_set in ranks.run(on_rank.installed):
            assert not any(globals_set.values()), globals_set


def test_gloo_listens_on_the_loopback_only(four: Ranks) -> None:
    """Unless told otherwise, no rank can be reached from another machine."""
    for hosts in four.run(on_rank.addresses):
        assert hosts
        assert set(hosts) == {"127.0.0.1"}


def test_one_group_at_a_time(four: Ranks) -> None:
    """Joining while still in a group is refused; so is a mesh that does not fit the world."""
    for answer in four.run(on_rank.join_alone, 2, []):
        assert answer == "InternalError: still in epoch 1; leave it before joining 2"
    four.run(on_rank.leave)
    for answer in four.run(on_rank.join_alone, 2, [SMALLER[2]]):
        assert answer.startswith("InvalidMesh: rank 1 is not in a group of 1")
