"""Schedules that are worked out once."""

from __future__ import annotations

import pytest

from coordinator.jobs.noise_levels import NoiseLevels
from ditmesh.errors import InvalidRequest
from ditmesh.v1 import cluster_pb2
from ditmesh.v1 import job_pb2 as pb

MODEL = cluster_pb2.Model(name="tiny", family="flux", default_shift=1.15)


def named(steps: int = 8, sampler: str = "euler", **changes: object) -> pb.JobSpec:
    schedule = pb.NamedSchedule(scheduler="simple", steps=steps)
    spec = pb.JobSpec(sampler=sampler, schedule=pb.Schedule(named=schedule))
    for name, value in changes.items():
        setattr(spec, name, value)
    return spec


def test_a_schedule_is_known_once_it_was_asked_for() -> None:
    """Then it costs nothing, whatever the seed; and it is the same."""
    levels = NoiseLevels()
    assert not levels.knows(named(), MODEL)
    first = levels.of(named(), MODEL)
    assert levels.knows(named(seed=7), MODEL)
    assert levels.of(named(seed=7), MODEL) is first
    assert len(first) == 9


@pytest.mark.parametrize(
    "other",
    [named(steps=9), named(sampler="dpm_2"), named(shift=3.0)],
    ids=["steps", "sampler", "shift"],
)
def test_another_schedule_is_another(other: pb.JobSpec) -> None:
    """Steps, sampler and shift all count: dpm_2 leaves the last but one level out."""
    levels = NoiseLevels()
    first = levels.of(named(), MODEL)
    assert not levels.knows(other, MODEL)
    assert levels.of(other, MODEL) != first


def test_a_models_own_shift_is_that_of_a_job_that_names_it() -> None:
    """Two models of one family may differ by nothing else."""
    levels = NoiseLevels()
    schnell = cluster_pb2.Model(name="schnell", family="flux", default_shift=0.0)
    assert levels.of(named(), MODEL) != levels.of(named(), schnell)
    assert levels.of(named(), MODEL) is levels.of(named(shift=1.15), MODEL)


def test_what_is_remembered_is_bounded() -> None:
    """In number, in steps, and in bytes that a client made up."""
    levels = NoiseLevels()
    long = named(steps=300)
    assert len(levels.of(long, MODEL)) == 301
    padded = named()
    # A field that this version does not know, of 4096 bytes.
    padded.schedule.MergeFromString(b"\xfa\x7f\x80\x20" + bytes(4096))
    levels.of(padded, MODEL)
    assert not levels.knows(long, MODEL)
    assert not levels.knows(padded, MODEL)
    for step in range(300):
        levels.of(named(shift=1 + step / 1000), MODEL)
    assert len(levels._known) == 256


def test_a_refusal_is_not_remembered() -> None:
    """It is said each time."""
    levels = NoiseLevels()
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="steps"):
            levels.of(named(steps=0), MODEL)
    assert not levels.knows(named(steps=0), MODEL)
