"""What is told of jobs to whoever writes them down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from coordinator.jobs.record import JobRecord


class JobLog(Protocol):
    """What a runner tells of its jobs. Nothing here blocks or raises."""

    def taken(self, record: JobRecord) -> None:
        """The job's inputs are complete."""
        ...

    def stepped(self, record: JobRecord) -> None:
        """The job has a new state."""
        ...

    def set_back(self, record: JobRecord) -> None:
        """The job goes on from an earlier state, or begins again: its later states are void."""
        ...

    def ended(self, record: JobRecord) -> None:
        """The job has its result, or its error."""
        ...

    def forgotten(self, record: JobRecord) -> None:
        """Nobody can come back for the job any more."""
        ...

    def freeze(self, records: Iterable[JobRecord]) -> None:
        """The process is going: what becomes of these jobs now is for the next one to see."""
        ...


class NoJournal:
    """Keeps nothing."""

    def taken(self, record: JobRecord) -> None:
        """See `JobLog`."""

    def stepped(self, record: JobRecord) -> None:
        """See `JobLog`."""

    def set_back(self, record: JobRecord) -> None:
        """See `JobLog`."""

    def ended(self, record: JobRecord) -> None:
        """See `JobLog`."""

    def forgotten(self, record: JobRecord) -> None:
        """See `JobLog`."""

    def freeze(self, records: Iterable[JobRecord]) -> None:
        """See `JobLog`."""
