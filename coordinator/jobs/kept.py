"""Jobs that have ended and are remembered, for clients who come back for the result."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.jobs.record import JobRecord


class KeptJobs:
    """In the order in which they ended; of thousands, none is looked at for a job that comes."""

    def __init__(self) -> None:
        self._nbytes: dict[JobRecord, int] = {}
        self.nbytes = 0
        """Of all their results."""

    def __len__(self) -> int:
        return len(self._nbytes)

    def add(self, record: JobRecord) -> None:
        """A job has ended."""
        tensors = record.end.tensors if record.end is not None else ()
        self._nbytes[record] = sum(tensor.spec.nbytes for tensor in tensors)
        self.nbytes += self._nbytes[record]

    def discard(self, record: JobRecord) -> None:
        """It is forgotten; harmless for a job that is not here."""
        self.nbytes -= self._nbytes.pop(record, 0)

    def to_drop(self, excess: int, limit: int) -> Iterator[JobRecord]:
        """The oldest, until they have had `excess` bytes and no more than `limit` are left. None
        that somebody listens to: its result is being fetched.
        """
        if excess <= 0 and len(self) <= limit:
            return
        unheard = [record for record in self._nbytes if not record.listeners]
        too_many = len(unheard) - limit
        for number, record in enumerate(unheard):
            if excess <= 0 and number >= too_many:
                return
            excess -= self._nbytes[record]
            yield record
