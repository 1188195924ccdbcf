"""Which executor a job gets: the fallback ladder as one pure function.

The group comes first; the local sampler takes what the group cannot; what neither can take
is refused with a reason. The client that is refused is the last rung: it may sample by itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Policy(enum.Enum):
    """What the caller allows."""

    ALLOW = "allow"
    FORBID = "forbid"
    LOCAL_ONLY = "local_only"


class Rung(enum.Enum):
    """Where a job goes."""

    GROUP = "group"
    LOCAL = "local"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True)
class GroupFacts:
    """The group at this moment. `waited_s`: seconds since there was one, or since the start, but
    for `loading_s` in which its nodes loaded weights, for which work waits on a group as well.
    """

    configured: bool
    ready: bool
    free: bool
    forming: bool
    has_model: bool
    waited_s: float
    problem: str = ""
    loading_s: float = 0.0

    def waits_on_s(self, regroup_wait_s: float) -> float:
        """Seconds until whoever waits for it may have to be told something else."""
        left = regroup_wait_s - self.waited_s - self.loading_s
        return left if left > 0 else regroup_wait_s - self.waited_s


@dataclass(frozen=True)
class LocalFacts:
    """The local sampler at this moment. `estimate_s`: of the rest of the job, None if unknown.

    `returning`: it is not available, but it is or may soon be started again. `full`: as many as
    may wait for it do, and this job is not one of them.
    """

    available: bool
    free: bool
    has_model: bool
    estimate_s: float | None
    problem: str = ""
    returning: bool = False
    full: bool = False


@dataclass(frozen=True)
class JobFacts:
    """What matters of a job. `group_excluded` says why the group must not have it again."""

    policy: Policy
    remaining_s: float | None
    group_excluded: str = ""


@dataclass(frozen=True)
class Decision:
    """Where the job goes, and why it does not go to the group."""

    rung: Rung
    reason: str = ""
    message: str = ""


def decide(
    job: JobFacts, group: GroupFacts, local: LocalFacts, *, regroup_wait_s: float
) -> Decision:
    """The rung of a job at this moment; asked again whenever anything changes."""
    if job.policy is Policy.LOCAL_ONLY:
        return _local(job, local, "LOCAL_ONLY", "the caller asked for the local sampler")
    waited_s = group.waited_s
    if job.policy is Policy.ALLOW and local.available and local.has_model:
        # Who has somewhere else to go does not wait for weights.
        waited_s += group.loading_s
    reason, message = _why_not_group(job, group, waits=waited_s < regroup_wait_s)
    if not reason:
        return Decision(Rung.GROUP if group.ready and group.free else Rung.WAIT)
    if job.policy is Policy.FORBID:
        return Decision(Rung.REFUSE, reason, f"{message}, and the caller forbids the fallback")
    return _local(job, local, reason, message)


def _why_not_group(job: JobFacts, group: GroupFacts, *, waits: bool) -> tuple[str, str]:
    """A code and words, both empty when the group has the job or may soon have it."""
    if job.group_excluded:
        return job.group_excluded, "the group failed at this job"
    if not group.configured:
        return "NO_GROUP", "this coordinator has no nodes"
    if group.ready:
        if not group.has_model:
            return "MODEL_NOT_ON_GROUP", "the group's nodes do not have the model"
        return "", ""
    if group.forming or waits:
        return "", ""
    return "NO_GROUP", "no group could be formed" + (f" ({group.problem})" if group.problem else "")


def _local(job: JobFacts, local: LocalFacts, reason: str, message: str) -> Decision:
    if local.full and not local.free:
        return Decision(
            Rung.REFUSE, "LOCAL_QUEUE_FULL", f"{message}, and the local sampler's queue is full"
        )
    if not local.available:
        if local.returning:
            return Decision(Rung.WAIT, reason, message)
        detail = local.problem or "it is not configured"
        return Decision(Rung.REFUSE, reason, f"{message}, and there is no local sampler: {detail}")
    if not local.has_model:
        return Decision(Rung.REFUSE, reason, f"{message}, and the local sampler lacks the model")
    late = (
        job.remaining_s is not None
        and local.estimate_s is not None
        and local.estimate_s > job.remaining_s
    )
    if late:
        return Decision(
            Rung.REFUSE,
            "TOO_SLOW",
            f"{message}, and the local sampler would need about {local.estimate_s:.0f} s, but the "
            f"job has {job.remaining_s:.1f} s left",
        )
    return Decision(Rung.LOCAL if local.free else Rung.WAIT, reason, message)
