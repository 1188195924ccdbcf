"""The fallback ladder as a function: every combination of facts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.lifecycle.ladder import (
    Decision,
    GroupFacts,
    JobFacts,
    LocalFacts,
    Policy,
    Rung,
    decide,
)

WAIT_S = 5.0

flags = st.booleans()
seconds = st.sampled_from([0.0, 0.5, 4.999, 5.0, 60.0])
jobs = st.builds(
    JobFacts,
    policy=st.sampled_from(list(Policy)),
    remaining_s=st.none() | seconds,
    group_excluded=st.sampled_from(["", "BAD_RESULT"]),
)
groups = st.builds(
    GroupFacts,
    configured=flags,
    ready=flags,
    free=flags,
    forming=flags,
    has_model=flags,
    waited_s=seconds,
    loading_s=seconds,
    problem=st.sampled_from(["", "rank 3 died"]),
)
locals_ = st.builds(
    LocalFacts,
    available=flags,
    free=flags,
    has_model=flags,
    estimate_s=st.none() | seconds,
    problem=st.sampled_from(["", "not reached yet"]),
)

READY = GroupFacts(True, True, True, False, True, 0.0)
ABSENT = GroupFacts(False, False, True, False, False, 0.0)
LOCAL = LocalFacts(True, True, True, None)
JOB = JobFacts(Policy.ALLOW, None)


def decided(job: JobFacts, group: GroupFacts, local: LocalFacts) -> Decision:
    return decide(job, group, local, regroup_wait_s=WAIT_S)


@given(job=jobs, group=groups, local=locals_)
def test_what_must_never_be_decided(job: JobFacts, group: GroupFacts, local: LocalFacts) -> None:
    """Whatever the facts: nobody gets what is absent, taken, forbidden or failed them before."""
    decision = decided(job, group, local)
    if decision.rung is Rung.GROUP:
        assert group.ready
        assert group.free
        assert group.has_model
        assert not job.group_excluded
        assert job.policy is not Policy.LOCAL_ONLY
        assert not decision.reason
    if decision.rung is Rung.LOCAL:
        assert local.available
        assert local.free
        assert local.has_model
        assert job.policy is not Policy.FORBID
        assert decision.reason
        assert decision.message
        if local.estimate_s is not None and job.remaining_s is not None:
            assert local.estimate_s <= job.remaining_s
    if decision.rung is Rung.REFUSE:
        assert decision.reason
        assert decision.message
    if job.policy is Policy.FORBID and group.configured and group.ready and group.has_model:
        assert job.group_excluded or decision.rung in (Rung.GROUP, Rung.WAIT)


@given(job=jobs, group=groups, local=locals_)
def test_waiting_always_has_an_end(job: JobFacts, group: GroupFacts, local: LocalFacts) -> None:
    """A job waits only for something that is busy, forming, or awaited for a bounded time."""
    if decided(job, group, local).rung is not Rung.WAIT:
        return
    for_group = not job.group_excluded and job.policy is not Policy.LOCAL_ONLY
    reasons = [
        for_group and group.ready and not group.free,
        for_group and group.configured and not group.ready and group.forming,
        for_group and group.configured and not group.ready and group.waited_s < WAIT_S,
        local.available and not local.free,
    ]
    assert any(reasons)


@pytest.mark.parametrize(
    ("policy", "local", "rung"),
    [
        (Policy.ALLOW, LOCAL, Rung.LOCAL),
        (Policy.FORBID, LOCAL, Rung.WAIT),
        (Policy.ALLOW, LocalFacts(True, True, False, None), Rung.WAIT),
        (Policy.ALLOW, LocalFacts(False, True, True, None), Rung.WAIT),
    ],
)
def test_weights_are_waited_for_by_who_has_nowhere_else_to_go(
    policy: Policy, local: LocalFacts, rung: Rung
) -> None:
    """A job that the local sampler could do goes there when the group's time is up, as ever; for
    the others time in which nodes load does not count.
    """
    loading = GroupFacts(True, False, True, False, False, 1.0, loading_s=60.0)
    assert decided(JobFacts(policy, None), loading, local).rung is rung
    over = GroupFacts(True, False, True, False, False, WAIT_S, loading_s=60.0)
    assert decided(JobFacts(policy, None), over, local).rung is not Rung.WAIT


@given(group=groups)
def test_whoever_waits_looks_again_when_something_may_have_changed(group: GroupFacts) -> None:
    """First when those could go elsewhere that can, then when the others' time is up."""
    lost_s = group.waited_s + group.loading_s
    again = group.waits_on_s(WAIT_S)
    assert again == WAIT_S - (lost_s if lost_s < WAIT_S else group.waited_s)


@pytest.mark.parametrize("policy", [Policy.ALLOW, Policy.FORBID])
def test_the_group_comes_first(policy: Policy) -> None:
    """And is waited for while it is busy, whatever the local sampler could do."""
    job = JobFacts(policy, 1.0)
    assert decided(job, READY, LOCAL) == Decision(Rung.GROUP)
    busy = GroupFacts(True, True, False, False, True, 60.0)
    assert decided(job, busy, LOCAL) == Decision(Rung.WAIT)


@pytest.mark.parametrize(
    ("group", "job", "reason", "words"),
    [
        (ABSENT, JOB, "NO_GROUP", "no nodes"),
        (GroupFacts(True, True, True, False, False, 0.0), JOB, "MODEL_NOT_ON_GROUP", "model"),
        (
            GroupFacts(True, False, True, False, False, WAIT_S, "rank 3 died"),
            JOB,
            "NO_GROUP",
            "rank 3 died",
        ),
        (GroupFacts(True, False, True, False, False, WAIT_S), JOB, "NO_GROUP", "no group"),
        (READY, JobFacts(Policy.ALLOW, None, "GROUP_LOST"), "GROUP_LOST", "failed at this job"),
        (READY, JobFacts(Policy.LOCAL_ONLY, None), "LOCAL_ONLY", "asked for"),
    ],
)
def test_every_reason_to_leave_the_group_has_a_code_and_words(
    group: GroupFacts, job: JobFacts, reason: str, words: str
) -> None:
    """They stand in the summary; under FORBID they stand in the refusal."""
    decision = decided(job, group, LOCAL)
    assert (decision.rung, decision.reason) == (Rung.LOCAL, reason)
    assert words in decision.message
    if job.policy is Policy.LOCAL_ONLY:
        return
    forbidden = decided(JobFacts(Policy.FORBID, None, job.group_excluded), group, LOCAL)
    assert (forbidden.rung, forbidden.reason) == (Rung.REFUSE, reason)
    assert "forbids the fallback" in forbidden.message


def test_a_group_that_may_come_back_is_waited_for_just_so_long() -> None:
    """Up to the limit, and beyond it only while it is really forming."""
    for waited, forming in itertools.product((0.0, 4.9, 5.0, 60.0), (True, False)):
        group = GroupFacts(True, False, True, forming, False, waited)
        expected = Rung.WAIT if forming or waited < WAIT_S else Rung.LOCAL
        assert decided(JOB, group, LOCAL).rung is expected


@pytest.mark.parametrize(
    ("local", "reason", "words"),
    [
        (LocalFacts(False, True, True, None), "NO_GROUP", "not configured"),
        (LocalFacts(False, True, True, None, "it crashed"), "NO_GROUP", "it crashed"),
        (LocalFacts(True, True, False, None), "NO_GROUP", "lacks the model"),
        (LocalFacts(True, True, True, 11.0), "TOO_SLOW", "about 11 s"),
    ],
)
def test_what_the_local_sampler_cannot_do_is_refused_in_words(
    local: LocalFacts, reason: str, words: str
) -> None:
    """Not there, without the model, or too slow for the deadline."""
    decision = decided(JobFacts(Policy.ALLOW, 10.0), ABSENT, local)
    assert (decision.rung, decision.reason) == (Rung.REFUSE, reason)
    assert words in decision.message


def test_an_unknown_speed_refuses_nothing() -> None:
    """The first job shows how fast the local sampler is."""
    assert decided(JobFacts(Policy.ALLOW, 0.1), ABSENT, LOCAL).rung is Rung.LOCAL
