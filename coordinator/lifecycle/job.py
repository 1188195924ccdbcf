"""The life of a job.

    RECEIVING ──complete──> QUEUED ──start──> RUNNING ──finish──> SUCCEEDED
                             │  ^               ^ │ │
                        line_up └─────lost──────│─┘ └──stop──> STOPPING ──any end──> FAILED
                             v                  │
                          LINED_UP ────start────┘

A stop before RUNNING, and a fail anywhere, end in FAILED; the error that goes with it says whether
that was a cancel, a deadline or a defect. What has LINED_UP behind other work is with its executor,
but nothing is lost if it ends at once: the executor leaves it out when its turn comes.
"""

from __future__ import annotations

import enum


class JobPhase(enum.Enum):
    """Where a job is."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    LINED_UP = "lined_up"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self in (JobPhase.SUCCEEDED, JobPhase.FAILED)


class JobEvent(enum.Enum):
    """What can happen to a job."""

    COMPLETE = "every input is here"
    LINE_UP = "an executor took it, and has other work before it"
    START = "an executor works on it"
    FINISH = "the executor delivered the result"
    LOST = "the executor failed; the newest state can go on elsewhere"
    STOPPED = "the executor stopped as it was told"
    STOP = "somebody wants it ended"
    FAIL = "it cannot be done"


class JobEffect(enum.Enum):
    """What to do about it."""

    WITHDRAW = "take it out of the queue"
    STOP_EXECUTOR = "tell its executor to stop"
    REPORT = "tell its clients the end and free what it held"


class InvalidTransition(AssertionError):
    """An event that cannot happen in this phase: a defect of the caller."""


_P, _E, _F = JobPhase, JobEvent, JobEffect

_TRANSITIONS: dict[tuple[JobPhase, JobEvent], tuple[JobPhase, tuple[JobEffect, ...]]] = {
    (_P.RECEIVING, _E.COMPLETE): (_P.QUEUED, ()),
    (_P.RECEIVING, _E.STOP): (_P.FAILED, (_F.REPORT,)),
    (_P.RECEIVING, _E.FAIL): (_P.FAILED, (_F.REPORT,)),
    (_P.QUEUED, _E.START): (_P.RUNNING, ()),
    (_P.QUEUED, _E.LINE_UP): (_P.LINED_UP, ()),
    (_P.QUEUED, _E.STOP): (_P.FAILED, (_F.WITHDRAW, _F.REPORT)),
    (_P.QUEUED, _E.FAIL): (_P.FAILED, (_F.REPORT,)),
    (_P.LINED_UP, _E.START): (_P.RUNNING, ()),
    (_P.LINED_UP, _E.FINISH): (_P.SUCCEEDED, (_F.REPORT,)),
    (_P.LINED_UP, _E.LOST): (_P.QUEUED, ()),
    (_P.LINED_UP, _E.STOPPED): (_P.FAILED, (_F.REPORT,)),
    (_P.LINED_UP, _E.STOP): (_P.FAILED, (_F.STOP_EXECUTOR, _F.REPORT)),
    (_P.LINED_UP, _E.FAIL): (_P.FAILED, (_F.REPORT,)),
    (_P.RUNNING, _E.FINISH): (_P.SUCCEEDED, (_F.REPORT,)),
    (_P.RUNNING, _E.LOST): (_P.QUEUED, ()),
    (_P.RUNNING, _E.STOPPED): (_P.FAILED, (_F.REPORT,)),
    (_P.RUNNING, _E.STOP): (_P.STOPPING, (_F.STOP_EXECUTOR,)),
    (_P.RUNNING, _E.FAIL): (_P.FAILED, (_F.REPORT,)),
    # Whoever asked for the end gets it, even when the last step was done meanwhile.
    (_P.STOPPING, _E.FINISH): (_P.FAILED, (_F.REPORT,)),
    (_P.STOPPING, _E.LOST): (_P.FAILED, (_F.REPORT,)),
    (_P.STOPPING, _E.STOPPED): (_P.FAILED, (_F.REPORT,)),
    (_P.STOPPING, _E.STOP): (_P.STOPPING, ()),
    (_P.STOPPING, _E.FAIL): (_P.FAILED, (_F.REPORT,)),
    # Too late to matter.
    (_P.SUCCEEDED, _E.STOP): (_P.SUCCEEDED, ()),
    (_P.FAILED, _E.STOP): (_P.FAILED, ()),
}


def advance(phase: JobPhase, event: JobEvent) -> tuple[JobPhase, tuple[JobEffect, ...]]:
    """The next phase and what to do on the way. Raises InvalidTransition."""
    try:
        return _TRANSITIONS[phase, event]
    except KeyError:
        raise InvalidTransition(f"{event.name} cannot happen to a job in {phase.name}") from None
