"""Jobs as values: states taken out, put in, and continued."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmesh.jobs import Job, Snapshot, extract_state, spec_digest
from ditmesh.tensors import WireTensor
from ditmesh.v1 import job_pb2 as pb

names = st.lists(st.sampled_from(["older", "denoised_1", "denoised_2", "x"]), unique=True)


def tensor(value: int) -> WireTensor:
    return WireTensor.from_numpy(np.array([value], np.float32))


def value_of(tensors: tuple[WireTensor, ...], index: int) -> float:
    return float(tensors[index].numpy()[0])


def job(count: int) -> Job:
    tensors = tuple(tensor(i) for i in range(count))
    spec = pb.JobSpec(job_id="a", tensors=[t.spec.to_proto() for t in tensors])
    return Job(spec, tensors)


def snapshot(step: int, history: list[str]) -> Snapshot:
    state = pb.JobState(step=step, latent=0, history={n: i + 1 for i, n in enumerate(history)})
    return Snapshot(state, tuple(tensor(100 + i) for i in range(len(history) + 1)))


@settings(deadline=None)
@given(inputs=st.integers(0, 4), first=names, second=names)
def test_a_job_continues_from_any_snapshot_as_often_as_it_must(
    inputs: int, first: list[str], second: list[str]
) -> None:
    """The spec's indices lead to the snapshot's tensors; the inputs keep theirs."""
    original = job(inputs)
    for step, history in ((3, first), (5, second)):
        taken = snapshot(step, history)
        continued = original.continued_from(taken)
        assert continued.spec.state.step == step
        assert value_of(continued.tensors, continued.spec.state.latent) == 100
        for i, name in enumerate(history):
            assert value_of(continued.tensors, continued.spec.state.history[name]) == 101 + i
        assert continued.tensors[:inputs] == original.tensors
        assert len(continued.spec.tensors) == len(continued.tensors)
        for declared, came in zip(continued.spec.tensors, continued.tensors, strict=True):
            assert declared == came.spec.to_proto()
        again = continued.snapshot
        assert again is not None
        assert again.step == step
        assert {value_of(again.tensors, i) for i in again.state.history.values()} == {
            float(101 + i) for i in range(len(history))
        }


def test_continuing_from_nothing_begins_again() -> None:
    """A job that came with a state can be sent back to its beginning; the original is untouched."""
    begun = job(1).continued_from(snapshot(4, ["x"]))
    fresh = begun.continued_from(None)
    assert not fresh.spec.HasField("state")
    assert fresh.snapshot is None
    assert begun.spec.state.step == 4


def test_a_snapshot_stands_for_itself() -> None:
    """Extracted from anywhere in a table, its indices count in its own tensors."""
    table = [tensor(i) for i in range(6)]
    state = pb.JobState(step=2, noise_draws=3, latent=4, history={"b": 1, "a": 5})
    taken = extract_state(state, table)
    assert [float(t.numpy()[0]) for t in taken.tensors] == [4, 5, 1]
    assert taken.state == pb.JobState(step=2, noise_draws=3, latent=0, history={"a": 1, "b": 2})
    assert state.latent == 4


def test_equal_specs_have_equal_digests() -> None:
    """Whatever the order in which a map was filled; any other field makes another digest."""
    one, two = pb.JobSpec(job_id="a"), pb.JobSpec(job_id="a")
    for name in "abcdef":
        one.positive.extra[name] = 1
    for name in "fedcba":
        two.positive.extra[name] = 1
    assert spec_digest(one) == spec_digest(two)
    two.seed = 1
    assert spec_digest(one) != spec_digest(two)
