"""What plans and states are refused, and the ends of a job's life."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.sampling import (
    SAMPLERS,
    Flow,
    State,
    begin,
    check_plan,
    check_state,
    finish,
    make_plan,
    noise_source,
    step,
)
from tests.sampling.denoisers import Curved, Point, run, sample

FLUX = Flow.flux()
SIGMAS = torch.tensor([1.0, 0.7, 0.4, 0.0])


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("sampler", {"sampler": "magic"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**64}),
        ("steps", {"sampler": "uni_pc", "sigmas": torch.tensor([1.0, 0.0])}),
        ("sigmas", {"sigmas": torch.tensor([[1.0, 0.0]])}),
        ("sigmas", {"sigmas": torch.tensor([1.0])}),
        ("sigmas", {"sigmas": torch.tensor([1.0, torch.nan, 0.0])}),
        ("sigmas", {"sigmas": torch.tensor([torch.inf, 0.5, 0.0])}),
        ("sigmas", {"sigmas": torch.tensor([1.0, 0.5, -0.1])}),
        ("sigmas", {"sigmas": torch.tensor([14.6, 0.5, 0.0])}),
        ("sigmas", {"sigmas": torch.tensor([1.0, 0.5, 0.5, 0.0])}),
        ("sigmas", {"sigmas": torch.tensor([0.5, 0.7, 0.0])}),
    ],
)
def test_an_impossible_plan_is_refused(field: str, arguments: dict[str, Any]) -> None:
    """Unknown sampler, seed out of range, and sigmas that no sampler can walk."""
    job = {"sampler": "euler", "sigmas": SIGMAS, "seed": 0, **arguments}
    for refuse in (check_plan, make_plan):
        with pytest.raises(InvalidRequest) as error:
            refuse(job["sampler"], job["sigmas"], FLUX, seed=job["seed"])
        assert error.value.field == field


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_an_empty_plan_returns_the_latent(sampler: str) -> None:
    """Denoise 0, or a window without steps: the latent comes back as it was."""
    plan = make_plan(sampler, torch.empty(0), FLUX, seed=0)
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert plan.steps == 0
    assert torch.equal(sample(plan, torch.ones_like(latent), latent, Curved()), latent)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_one_last_step_gives_the_denoised_latent(sampler: str) -> None:
    """A single step into 0 is what the model says, for every sampler that takes one."""
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.6, 0.3, 0.0] if SAMPLERS[sampler].min_steps == 2 else [0.6, 0.0])
    plan = make_plan(sampler, sigmas, FLUX, seed=0)
    result = sample(plan, torch.zeros_like(latent), latent, Point(0.25))
    # UniPC stops at sigma 0.001.
    torch.testing.assert_close(result, torch.full_like(latent, 0.25), atol=5e-3, rtol=0)


def test_a_job_in_two_halves_is_the_whole() -> None:
    """Leftover noise carries over: finish, then begin with zero noise, loses only rounding."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(noise)
    whole = sample(make_plan("euler", SIGMAS, FLUX, seed=0), noise, zeros, Curved())
    first = sample(make_plan("euler", SIGMAS[:3], FLUX, seed=0), noise, zeros, Curved())
    second = sample(make_plan("euler", SIGMAS[2:], FLUX, seed=0), zeros, first, Curved())
    torch.testing.assert_close(second, whole, atol=1e-5, rtol=0)


def test_sigmas_of_any_float_type_become_fp32() -> None:
    """A client's float64 sigmas are taken; the caller's tensor is not kept."""
    plan = make_plan("euler", SIGMAS.double(), FLUX, seed=0)
    assert plan.sigmas.dtype == torch.float32
    assert plan.steps == 3


def test_begin_refuses_noise_of_another_shape() -> None:
    """The error names the field."""
    plan = make_plan("euler", SIGMAS, FLUX, seed=0)
    with pytest.raises(InvalidTensor) as error:
        begin(plan, torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 8, 8))
    assert error.value.field == "noise"


def after_one_step() -> State:
    """A good state of dpmpp_2m, from which bad ones are made."""
    plan = make_plan("dpmpp_2m", SIGMAS, FLUX, seed=0)
    state = begin(plan, torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4))
    return step(plan, state, Curved(), noise_source(plan, state))


LATENT = torch.zeros(1, 4, 4, 4)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("state.revision", {"revision": 99}),
        ("state.step", {"step": -1}),
        ("state.step", {"step": 4}),
        ("state.noise_draws", {"noise_draws": -1}),
        ("state.history", {"history": {}}),
        ("state.history", {"history": {"denoised_1": LATENT, "denoised_2": LATENT}}),
        ("state.history", {"step": 0}),
        ("state.denoised_1", {"history": {"denoised_1": torch.zeros(1, 4, 4, 5)}}),
        ("state.denoised_1", {"history": {"denoised_1": LATENT.double()}}),
        ("state.latent", {"latent": LATENT.half(), "history": {"denoised_1": LATENT}}),
    ],
)
def test_a_state_of_another_job_is_refused(field: str, change: dict[str, Any]) -> None:
    """Whatever would give a wrong picture silently raises an error that names the field."""
    plan = make_plan("dpmpp_2m", SIGMAS, FLUX, seed=0)
    state = after_one_step()
    check_state(plan, state)
    with pytest.raises(InvalidRequest) as error:
        check_state(plan, dataclasses.replace(state, **change))
    assert error.value.field == field


def test_steps_and_finish_keep_their_order() -> None:
    """No result before the last step, and no step after it."""
    plan = make_plan("dpmpp_2m", SIGMAS, FLUX, seed=0)
    state = after_one_step()
    with pytest.raises(InvalidRequest) as early:
        finish(plan, state)
    assert early.value.field == "state.step"
    done = run(plan, state, Curved())
    with pytest.raises(InvalidRequest) as late:
        step(plan, done, Curved(), noise_source(plan, done))
    assert late.value.field == "state.step"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_video_latents_are_sampled_like_images(sampler: str) -> None:
    """Samplers do not care for a latent's rank: frames give what they give as rows."""
    plan = make_plan(sampler, SIGMAS, FLUX, seed=0)
    noise = torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (x + sigma).sin()

    video = sample(plan, noise, torch.zeros_like(noise), denoise)
    rows = noise.reshape(1, 2, 12, 5)
    image = sample(plan, rows, torch.zeros_like(rows), denoise)
    torch.testing.assert_close(video.reshape(rows.shape), image)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_samplers_follow_the_latents_device(sampler: str) -> None:
    """A latent elsewhere stays there, though sigmas and coefficients are on the CPU.

    The meta device stands for any accelerator: it refuses to mix as they do.
    """
    plan = make_plan(sampler, SIGMAS, FLUX, seed=0)
    noise = torch.empty(1, 2, 4, 4, device="meta")
    latent = sample(plan, noise, torch.empty_like(noise), Curved())
    assert latent.device.type == "meta"
    assert latent.shape == noise.shape
