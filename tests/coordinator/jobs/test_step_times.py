"""What the steps' reports tell of how long steps take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.coordinator.fakes import make_job, run, world


def test_the_first_step_does_not_teach_how_long_steps_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model's loading is in it; an estimate from it would refuse jobs that fit."""
    now = 0.0

    async def slow_start(step: int) -> None:
        nonlocal now
        now += 1.0 if step else 60.0

    async def test() -> None:
        async with world(nodes=0) as w:
            w.scripts["local"].before = slow_start
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            facts = w.cluster.local_facts(w.cluster.models()["tiny"], 16, 1)
            assert facts.estimate_s == pytest.approx(1.0)

    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("coordinator.jobs.segment.time", clock)
    run(test())


@pytest.mark.parametrize("every", [1, 2, 3])
def test_steps_that_are_not_all_told_of_count_all_the_same(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time between two reports is shared by the steps that were done in it."""
    now = 0.0

    async def second(step: int) -> None:
        nonlocal now
        now += 1.0

    async def test() -> None:
        async with world(nodes=0) as w:
            script = w.scripts["local"]
            script.before, script.tells = second, lambda step: step % every == 0
            record, _ = await w.begin(*make_job(steps=6))
            assert await w.ended(record) is None
            facts = w.cluster.local_facts(w.cluster.models()["tiny"], 16, 1)
            assert facts.estimate_s == pytest.approx(1.0)
            assert record.segments[0].seconds == 6.0

    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("coordinator.jobs.segment.time", clock)
    run(test())
