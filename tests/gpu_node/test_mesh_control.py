"""What the ranks of a mesh compare before each step, and what comes of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.errors import BadResult, GroupLost, RanksDiffer
from ditmesh.executor.control import GO_ON, StopFlag
from ditmesh.mesh import MeshSpec
from ditmesh.sampling import State
from ditmesh.v1 import node_pb2 as pb
from gpu_node.mesh_control import MeshControl

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group

SHAPES = [(1, 16, 4, 6), (1, 1, 3, 5)]


class Ranks:
    """A group in which the leader said what the test says; by default the same as this rank."""

    def __init__(self, rank: int = 1) -> None:
        self.rank = rank
        self.said: list[int] = []
        self.leader: list[int] | None = None
        self.aborted = False

    def decide(self, mesh: MeshSpec, values: Sequence[int]) -> list[int]:
        self.said = list(values)
        return self.leader or self.said

    def abort(self) -> None:
        self.aborted = True


def control(ranks: Ranks, flag: StopFlag | None = None, job_id: str = "job") -> MeshControl:
    mesh = MeshSpec((0, 1), 2)
    return MeshControl(cast("Group", ranks), mesh, flag or StopFlag(), job_id)


def said(latent: torch.Tensor, step: int = 1, job_id: str = "job") -> list[int]:
    ranks = Ranks()
    control(ranks, job_id=job_id).agree(State(step, latent))
    return ranks.said


def latent(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@given(st.sampled_from(SHAPES), st.integers(0, 14), st.integers(0, 31))
def test_a_single_bit_tells(shape: tuple[int, ...], index: int, bit: int) -> None:
    """Whichever bit of whichever value differs, the ranks say different things."""
    here, there = latent(shape), latent(shape)
    there.view(-1).view(torch.int32)[index] ^= -(2**31) if bit == 31 else 1 << bit
    assert said(here) != said(there)
    assert said(here) == said(here.clone())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 7, -1])
def test_one_value_that_is_not_finite(shape: tuple[int, ...], value: float, index: int) -> None:
    """Wherever it stands, the job is told that the model overflowed, by the leader; who has the
    same bits takes its word, so that all of them say so.
    """
    bad = latent(shape)
    bad.view(-1)[index] = value
    leader, follower = Ranks(rank=0), Ranks(rank=1)
    with pytest.raises(BadResult, match="not finite after step 3"):
        control(leader).agree(State(3, bad))
    follower.leader = leader.said
    with pytest.raises(BadResult, match="not finite after step 3"):
        control(follower).agree(State(3, bad))
    assert not follower.aborted


def test_a_mesh_of_one_rank_has_nobody_to_ask() -> None:
    """It decides by its own flag, and finds what is not finite itself."""
    ranks, flag = Ranks(rank=0), StopFlag()
    alone = MeshControl(cast("Group", ranks), MeshSpec((0,), 1), flag, "job")
    assert alone.agree(State(1, latent(SHAPES[0]))) == GO_ON
    flag.set(pb.STOP_REASON_CANCELLED)
    assert alone.agree(State(1, latent(SHAPES[0]))) == pb.STOP_REASON_CANCELLED
    with pytest.raises(BadResult, match="not finite after step 2"):
        alone.agree(State(2, latent(SHAPES[0]) / 0))
    assert ranks.said == []


@pytest.mark.parametrize("differs", [2, 3])
def test_another_state_than_the_leaders(differs: int) -> None:
    """Another step or checksum than the leader's: this rank leaves and says so."""
    ranks = Ranks()
    ranks.leader = [GO_ON, *said(latent(SHAPES[0]))[1:]]
    ranks.leader[differs] += 1
    with pytest.raises(RanksDiffer, match="rank 1 is at step 1"):
        control(ranks).agree(State(1, latent(SHAPES[0])))
    assert ranks.aborted


def test_another_job_than_the_leaders() -> None:
    """Two jobs of one seed and size begin with the same latent: that alone does not tell them
    apart, and a rank that left one out must not take the leader's word in it for the next.
    """
    ranks = Ranks()
    ranks.leader = said(latent(SHAPES[0]), step=0, job_id="first")
    ranks.leader[0] = int(pb.STOP_REASON_CANCELLED)
    with pytest.raises(GroupLost, match="rank 1 is at another job"):
        control(ranks, job_id="second").agree(State(0, latent(SHAPES[0])))
    assert ranks.aborted


def test_the_leaders_reason_counts() -> None:
    """Not this rank's own flag: else some would stop and others wait for them."""
    flag = StopFlag()
    flag.set(pb.STOP_REASON_DEADLINE)
    ranks = Ranks()
    ranks.leader = [int(pb.STOP_REASON_CANCELLED), *said(latent(SHAPES[0]))[1:]]
    state = State(1, latent(SHAPES[0]))
    assert control(ranks, flag).agree(state) == pb.STOP_REASON_CANCELLED
    assert ranks.said[0] == pb.STOP_REASON_DEADLINE
