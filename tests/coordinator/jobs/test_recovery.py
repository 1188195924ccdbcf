"""What members of a lost executor still hold."""

from __future__ import annotations

from typing import Any

import pytest

from ditmesh.errors import GroupLost
from ditmesh.jobs import Snapshot
from ditmesh.v1 import job_pb2
from tests.coordinator.fakes import f32, make_job, run, world


def test_steps_that_only_a_survivor_told_of_are_the_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leader may die before it has told of a step that others finished with it."""
    spec, tensors = make_job(steps=4)

    async def fetch(link: Any, job_id: str, after_step: int) -> Snapshot | None:
        state = job_pb2.JobState(step=3, sampler_revision=1, latent=0)
        return Snapshot(state, (f32(1, 16, 4, 4),)) if link.address == "node1" else None

    monkeypatch.setattr("coordinator.jobs.recovery._fetch", fetch)

    async def test() -> None:
        async with world() as w:
            w.group.returns = False
            w.scripts["group"].fail[2] = GroupLost("rank 0 died")
            record, _ = await w.begin(spec, tensors)
            assert await w.ended(record) is None
            done = [(s.executor, s.first_step, s.end_step) for s in record.summary().segments]
            assert done == [("group", 0, 3), ("local", 3, 4)]
            (moved,) = record.summary().fallbacks
            assert (moved.at_step, moved.repeated_steps) == (3, 0)

    run(test())
