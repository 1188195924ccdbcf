"""Jobs that have ended: how much they hold, and which of them go first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coordinator.jobs.kept import KeptJobs
from ditmesh.tensors import WireTensor


class Record(SimpleNamespace):
    """What is looked at of a job's record."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def ended(nbytes: int, *, heard: bool = False, failed: bool = False) -> Any:
    """A job with a result of so many bytes, fetched by somebody or not."""
    tensors = (WireTensor.from_numpy(np.zeros(nbytes, np.uint8)),)
    end = None if failed else SimpleNamespace(tensors=tensors)
    return Record(end=end, listeners={1} if heard else set())


def test_bytes_are_those_of_what_is_kept() -> None:
    """Each job's once, until it is forgotten; a job that failed has none."""
    kept, first, failed = KeptJobs(), ended(10), ended(20, failed=True)
    for record in (first, failed, ended(3)):
        kept.add(record)
    assert (len(kept), kept.nbytes) == (3, 13)
    for _ in range(2):
        kept.discard(first)
        assert (len(kept), kept.nbytes) == (2, 3)


@pytest.mark.parametrize(
    ("excess", "limit", "dropped"),
    [(0, 3, []), (0, 2, [0]), (0, 0, [0, 2, 3]), (1, 3, [0]), (11, 3, [0, 2]), (99, 3, [0, 2, 3])],
)
def test_the_oldest_go_first(excess: int, limit: int, dropped: list[int]) -> None:
    """As many as are too many, or hold what is wanted; never one that somebody listens to."""
    kept = KeptJobs()
    records = [ended(10), ended(10, heard=True), ended(10), ended(10)]
    for record in records:
        kept.add(record)
    found = []
    for record in kept.to_drop(excess, limit):
        found.append(records.index(record))
        kept.discard(record)
    assert found == dropped
