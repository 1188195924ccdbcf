"""The samplers' formulas, against denoisers whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ditmesh.sampling import (
    SAMPLERS,
    Flow,
    NoiseKind,
    State,
    begin,
    finish,
    job_sigmas,
    make_plan,
    noise_source,
    scheduled_sigmas,
    step,
)
from tests.sampling.denoisers import Curved, Gaussian, Point, run, sample

FLUX = Flow.flux()
ALL = sorted(SAMPLERS)
DETERMINISTIC = [name for name in ALL if SAMPLERS[name].noise is NoiseKind.NONE]
STOCHASTIC = [name for name in ALL if SAMPLERS[name].noise is not NoiseKind.NONE]
START = torch.linspace(-3, 3, 64).reshape(1, 1, 8, 8)


def error(sampler: str, steps: int) -> float:
    """Largest error on Gaussian data, over even steps from sigma 0.9 to 0.15."""
    data = Gaussian(mean=0.7, std=0.5)
    sigmas = torch.linspace(0.9, 0.15, steps + 1)
    plan = make_plan(sampler, sigmas, FLUX, seed=1)
    latent = run(plan, State(step=0, latent=START), data).latent
    return (latent - data.solution(START, sigmas[0], sigmas[-1])).abs().max().item()


@pytest.mark.parametrize("sampler", ALL)
def test_a_single_point_is_found(sampler: str) -> None:
    """Where all data is one point, every sampler ends there, whatever the schedule."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in ("simple", "karras", "ddim_uniform"):
        sigmas = job_sigmas(FLUX, sampler=sampler, scheduler=scheduler, steps=6)
        plan = make_plan(sampler, sigmas, FLUX, seed=1)
        latent = sample(plan, noise, torch.zeros_like(noise), Point(0.7))
        # UniPC stops at sigma 0.001 and leaves that much of the noise.
        torch.testing.assert_close(latent, torch.full_like(latent, 0.7), atol=6e-3, rtol=0)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_straight_paths_are_followed_exactly(sampler: str) -> None:
    """For one data point the ODE's solution is a straight line: no sampler may leave it."""
    sigmas = torch.tensor([0.95, 0.9, 0.7, 0.65, 0.4, 0.2, 0.15])
    plan = make_plan(sampler, sigmas, FLUX, seed=1)
    state, noise = State(step=0, latent=START), noise_source(plan, State(step=0, latent=START))
    while state.step < plan.steps:
        state = step(plan, state, Point(0.7), noise)
        line = 0.7 + (START - 0.7) * (sigmas[state.step] / sigmas[0])
        torch.testing.assert_close(
            state.latent, line, atol=2e-3 if sampler == "deis" else 1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        ("euler", 1),
        ("ddim", 1),
        ("heun", 2),
        ("dpm_2", 2),
        ("dpmpp_2m", 2),
        ("res_multistep", 2),
        ("uni_pc", 2),
        ("uni_pc_bh2", 2),
    ],
)
def test_the_error_shrinks_with_the_order(sampler: str, order: int) -> None:
    """Twice the steps divide the error by 2^order. UniPC's first step of order 1 caps it at 2."""
    coarse, fine = error(sampler, 24), error(sampler, 48)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", ["lms", "ipndm", "deis"])
def test_long_multistep_samplers_beat_second_order(sampler: str) -> None:
    """Order 3 and 4: at 12 even steps, less than a third of Heun's error at half the cost."""
    assert error(sampler, 12) < error("heun", 12) / 3


def test_ipndm_is_lms_on_even_steps() -> None:
    """Adams-Bashforth weights are what the Lagrange polynomials give for equal steps."""
    sigmas = torch.linspace(0.9, 0.1, 9)
    latents = [
        run(make_plan(name, sigmas, FLUX, seed=0), State(0, START), Curved()).latent
        for name in ("ipndm", "lms")
    ]
    torch.testing.assert_close(latents[0], latents[1], atol=2e-5, rtol=0)


def test_lms_weights_integrate_cubics_exactly() -> None:
    """On uneven sigmas: sum of w_j * p(sigma_j) is the integral of p, for degrees below 4."""
    sigmas = scheduled_sigmas(FLUX, "karras", 9)[:-1]
    plan = make_plan("lms", sigmas, FLUX, seed=0)
    exact = sigmas.double()
    for at in range(3, plan.steps):
        past = exact[at - 3 : at + 1].flip(0)
        for degree in range(4):
            integral = (exact[at + 1] ** (degree + 1) - exact[at] ** (degree + 1)) / (degree + 1)
            total = (plan.coefficients[at].double() * past**degree).sum()
            torch.testing.assert_close(total, integral, atol=1e-6, rtol=1e-4)


def test_deis_weights_sum_to_the_step() -> None:
    """A constant slope is integrated exactly, but for the published sum over 10000 points."""
    sigmas = scheduled_sigmas(FLUX, "simple", 10)[:-1]
    plan = make_plan("deis", sigmas, FLUX, seed=0)
    sums = torch.stack([weights.sum() for weights in plan.coefficients])
    torch.testing.assert_close(sums, sigmas.diff(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_fresh_noise_keeps_the_noise_level(sampler: str) -> None:
    """For one data point, x = (1 - sigma) * point + sigma * unit noise holds after every step.

    And the noise is no longer the one the job started with.
    """
    sigmas = torch.tensor([0.9, 0.85, 0.7, 0.6, 0.4, 0.3])
    noise = torch.randn(1, 4, 96, 96, generator=torch.Generator().manual_seed(3))
    plan = make_plan(sampler, sigmas, FLUX, seed=1)
    state = begin(plan, noise, torch.full_like(noise, 0.7))
    source = noise_source(plan, state)
    while state.step < plan.steps:
        state = step(plan, state, Point(0.7), source)
        sigma = sigmas[state.step]
        unit = (state.latent - (1 - sigma) * 0.7) / sigma
        assert unit.mean().item() == pytest.approx(0.0, abs=0.02)
        assert unit.std().item() == pytest.approx(1.0, abs=0.01)
    correlation = (unit * noise).mean().item()
    assert correlation < (0.85 if sampler == "er_sde" else 0.3)


# lcm answers with one denoised prediction, which has less spread than the data.
@pytest.mark.parametrize("sampler", [name for name in STOCHASTIC if name != "lcm"])
def test_stochastic_samplers_reproduce_gaussian_data(sampler: str) -> None:
    """From pure noise, many steps give the data's mean and standard deviation."""
    data = Gaussian(mean=0.7, std=0.5)
    noise = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(5))
    sigmas = job_sigmas(FLUX, sampler=sampler, scheduler="simple", steps=150)
    latent = sample(make_plan(sampler, sigmas, FLUX, seed=2), noise, torch.zeros_like(noise), data)
    assert latent.mean().item() == pytest.approx(0.7, abs=0.03)
    assert latent.std().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("sampler", ALL)
def test_evaluations_are_counted(sampler: str) -> None:
    """`evaluations` is the most model calls of a step; the last step into 0 needs one."""
    calls: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == ()
        assert sigma.dtype == torch.float32
        calls.append(sigma.item())
        return x * 0.5

    sigmas = job_sigmas(FLUX, sampler=sampler, scheduler="simple", steps=4)
    plan = make_plan(sampler, sigmas, FLUX, seed=0)
    run(plan, begin(plan, START, torch.zeros_like(START)), denoise)
    assert len(calls) == SAMPLERS[sampler].evaluations * (plan.steps - 1) + 1
    assert all(0 < sigma <= 1 for sigma in calls)


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "er_sde"])
def test_log_snr_samplers_avoid_sigma_one(sampler: str) -> None:
    """A first sigma of 1 has log SNR minus infinity: they start at 0.01 % instead."""
    sigmas = scheduled_sigmas(FLUX, "simple", 4)
    plan = make_plan(sampler, sigmas, FLUX, seed=0)
    assert plan.grid[0].item() == pytest.approx(FLUX.sigma_of_percent(1e-4))
    assert torch.equal(plan.grid[1:], sigmas[1:])
    assert sigmas[0] == 1
    lower = torch.tensor([0.8, 0.4, 0.0])
    assert torch.equal(make_plan(sampler, lower, FLUX, seed=0).grid, lower)


@pytest.mark.parametrize("sampler", ["uni_pc", "uni_pc_bh2"])
def test_unipc_ends_at_a_thousandth(sampler: str) -> None:
    """The last sigma 0 becomes 0.001, and the result is scaled for it; another stays."""
    plan = make_plan(sampler, torch.tensor([1.0, 0.5, 0.0]), FLUX, seed=0)
    assert plan.grid[-1].item() == pytest.approx(0.001)
    state = run(plan, State(step=0, latent=START), Point(0.7))
    torch.testing.assert_close(finish(plan, state), state.latent / 0.999)
    kept = torch.tensor([1.0, 0.5, 0.25])
    assert torch.equal(make_plan(sampler, kept, FLUX, seed=0).grid, kept)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_a_batch_is_sampled_as_its_images(sampler: str) -> None:
    """No image of a batch knows of another (fresh noise is drawn for the batch as a whole)."""
    data = Gaussian(0.2, 0.8)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = job_sigmas(FLUX, sampler=sampler, scheduler="beta", steps=5)
    plan = make_plan(sampler, sigmas, FLUX, seed=0)
    batch = sample(plan, noise, torch.zeros_like(noise), data)
    alone = [sample(plan, one[None], torch.zeros_like(one[None]), data) for one in noise]
    torch.testing.assert_close(batch, torch.cat(alone), atol=1e-6, rtol=1e-6)
