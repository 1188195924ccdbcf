"""When a job counts as the cause of what breaks under it."""

from __future__ import annotations

import pytest

from coordinator.lifecycle.losses import Losses


@pytest.mark.parametrize(("executor", "most"), [("group", 2), ("local", 3)])
def test_losses_in_a_row_count_until_it_must_not_have_it_again(executor: str, most: int) -> None:
    """A step in between begins the count anew: the executor's nodes die, and not by the job."""
    losses = Losses()
    assert not losses.any
    for _ in range(5):
        assert not losses.note(executor, advanced=True, lined_up=False)
    told = [losses.note(executor, advanced=False, lined_up=False) for _ in range(most - 1)]
    assert told == [False] * (most - 2) + [True]
    assert losses.any


def test_a_loss_behind_another_job_counts_and_keeps_it_from_nothing() -> None:
    """Whose doing it was shows when it has the group to itself."""
    losses = Losses()
    assert [losses.note("group", advanced=False, lined_up=True) for _ in range(3)] == [False] * 3
    assert losses.any
    assert losses.note("group", advanced=False, lined_up=False)


def test_each_executor_has_its_own_count() -> None:
    """What the group was lost for says nothing of the local sampler."""
    losses = Losses()
    assert not losses.note("group", advanced=False, lined_up=False)
    assert not losses.note("local", advanced=False, lined_up=False)
    assert losses.note("group", advanced=False, lined_up=False)
