"""Seeded noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmesh.errors import InvalidRequest
from ditmesh.sampling import Flow, State, initial_noise, make_plan, noise_source
from tests.sampling.golden_cases import golden_names, golden_tensors, load_golden

seeds = st.integers(0, 2**64 - 1)
ZERO = torch.tensor(0.0)


@pytest.mark.parametrize("name", golden_names())
def test_initial_noise_is_comfyuis(name: str) -> None:
    """The same seed gives the bits that KSampler starts from."""
    expected = golden_tensors(name)["noise"]
    assert torch.equal(initial_noise(expected.shape, load_golden(name).seed), expected)


@given(seeds, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_batch_index_picks_from_a_larger_batch(seed: int, positions: list[int]) -> None:
    """Each latent gets what a batch of ones, drawn one after another, has at its position."""
    generator = torch.Generator().manual_seed(seed)
    sequence = [torch.randn(1, 2, 3, 3, generator=generator) for _ in range(10)]
    noise = initial_noise((len(positions), 2, 3, 3), seed, batch_index=positions)
    assert torch.equal(noise, torch.cat([sequence[position] for position in positions]))


@pytest.mark.parametrize("positions", [[0], [0, 1, 2], [0, -1], [0, 5000]])
def test_impossible_positions_are_refused(positions: list[int]) -> None:
    """One per latent, not negative, and not so high that drawing up to it takes for ever."""
    with pytest.raises(InvalidRequest) as error:
        initial_noise((2, 4, 8, 8), 0, batch_index=positions)
    assert error.value.field == "batch_index"


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_are_unsigned_64_bit(seed: int) -> None:
    """Others are refused by name."""
    with pytest.raises(InvalidRequest) as error:
        initial_noise((1, 4, 8, 8), seed)
    assert error.value.field == "seed"


def state(*shape: int) -> State:
    """A state with a latent of this shape."""
    return State(step=0, latent=torch.zeros(shape))


@given(seeds, st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_sequential_noise_is_addressed_by_draw(seed: int, draws: list[int]) -> None:
    """Draw k is the k-th tensor after the seed, in whatever order draws are asked for."""
    plan = make_plan("euler_ancestral", torch.tensor([1.0, 0.0]), Flow.flux(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    sequence = [torch.randn(1, 2, 5, 3, generator=generator) for _ in range(7)]
    source = noise_source(plan, state(1, 2, 5, 3))
    for draw in draws:
        assert torch.equal(source(draw, ZERO, ZERO), sequence[draw])


SIGMAS = torch.tensor([1.0, 0.9, 0.72, 0.5, 0.31, 0.2085276, 0.0])


@settings(max_examples=20)
@given(st.permutations(range(5)))
def test_brownian_noise_does_not_depend_on_order(order: list[int]) -> None:
    """A source that saw other intervals first gives the same bits as a new one."""
    plan = make_plan("dpmpp_2m_sde", SIGMAS, Flow.flux(), seed=3)
    used = noise_source(plan, state(1, 2, 3, 3))
    for k in order:
        new = noise_source(plan, state(1, 2, 3, 3))
        assert torch.equal(used(0, SIGMAS[k], SIGMAS[k + 1]), new(9, SIGMAS[k], SIGMAS[k + 1]))


def test_brownian_increments_add_up() -> None:
    """The path from a to c is that from a to b and on to c; unit variance each."""
    plan = make_plan("dpmpp_2m_sde", SIGMAS, Flow.flux(), seed=3)
    source = noise_source(plan, state(1, 4, 64, 64))
    a, b, c = SIGMAS[1], SIGMAS[3], SIGMAS[4]
    first, second, whole = source(0, a, b), source(0, b, c), source(0, a, c)
    added = first * (a - b).sqrt() + second * (b - c).sqrt()
    torch.testing.assert_close(whole * (a - c).sqrt(), added, atol=1e-5, rtol=0)
    for noise in (first, second, whole):
        assert noise.std().item() == pytest.approx(1.0, abs=0.03)
    assert abs((first * second).mean().item()) < 0.03


def test_brownian_noise_is_keyed_by_seed_and_whole_range() -> None:
    """Another seed, or a slice of the sigmas, is another path."""
    flow, latent = Flow.flux(), state(1, 4, 8, 8)
    whole = noise_source(make_plan("dpmpp_sde", SIGMAS, flow, seed=3), latent)
    same = noise_source(make_plan("dpmpp_sde", SIGMAS, flow, seed=3), latent)
    other = noise_source(make_plan("dpmpp_sde", SIGMAS, flow, seed=4), latent)
    sliced = noise_source(make_plan("dpmpp_sde", SIGMAS[2:], flow, seed=3), latent)
    at = SIGMAS[2], SIGMAS[3]
    assert torch.equal(whole(0, *at), same(0, *at))
    assert not torch.allclose(whole(0, *at), other(0, *at))
    assert not torch.allclose(whole(0, *at), sliced(0, *at))
