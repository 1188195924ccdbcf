"""Classifier-free guidance and noise masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.sampling import (
    SAMPLERS,
    Flow,
    GuidedDenoiser,
    InpaintDenoiser,
    inpaint_noise,
    job_sigmas,
    make_plan,
    prepare_mask,
)
from tests.sampling.denoisers import Curved, sample

SIGMA = torch.tensor(0.5)


class Model:
    """Answers with the branch itself, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, ...]] = []

    def __call__(self, x: Tensor, sigma: Tensor, branches: Sequence[float]) -> list[Tensor]:
        """One answer a branch."""
        self.asked.append(tuple(branches))
        return [torch.full_like(x, branch) for branch in branches]


@given(st.floats(0, 30).filter(lambda cfg: not math.isclose(cfg, 1.0)))
def test_guidance_extrapolates_from_the_negative(cfg: float) -> None:
    """Negative + cfg * (positive - negative), both in one call, positive first."""
    model = Model()
    guided = GuidedDenoiser(model, 5.0, 2.0, cfg)
    torch.testing.assert_close(guided(torch.zeros(3), SIGMA), torch.full((3,), 2.0 + 3.0 * cfg))
    assert model.asked == [(5.0, 2.0)]


@pytest.mark.parametrize("cfg", [1.0, 1.0 + 1e-10])
@pytest.mark.parametrize("negative", [2.0, None])
def test_the_negative_is_skipped_at_one(cfg: float, negative: float | None) -> None:
    """At cfg 1, near enough, the negative is not evaluated and need not be there."""
    model = Model()
    guided = GuidedDenoiser(model, 5.0, negative, cfg)
    assert torch.equal(guided(torch.zeros(3), SIGMA), torch.full((3,), 5.0))
    assert model.asked == [(5.0,)]


@pytest.mark.parametrize(
    ("field", "cfg", "negative"),
    [("cfg", math.nan, 2.0), ("cfg", math.inf, 2.0), ("negative", 3.0, None)],
)
def test_impossible_guidance_is_refused(field: str, cfg: float, negative: float | None) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as error:
        GuidedDenoiser(Model(), 5.0, negative, cfg)
    assert error.value.field == field


def test_the_model_sees_the_kept_part_noised() -> None:
    """Outside the mask: latent and noise at this sigma in, the latent itself out."""
    seen: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return torch.full_like(x, 9.0)

    inpaint = InpaintDenoiser(
        denoise,
        Flow.flux(),
        mask=torch.tensor([1.0, 0.0, 0.25]),
        noise=torch.tensor([4.0, 4.0, 4.0]),
        latent_image=torch.tensor([2.0, 2.0, 2.0]),
    )
    denoised = inpaint(torch.tensor([7.0, 7.0, 7.0]), SIGMA)
    assert torch.equal(seen[0], torch.tensor([7.0, 3.0, 0.25 * 7 + 0.75 * 3]))
    assert torch.equal(denoised, torch.tensor([9.0, 2.0, 0.25 * 9 + 0.75 * 2]))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_masked_job_keeps_what_is_outside(sampler: str) -> None:
    """Where the mask is 0 the result is the latent image; elsewhere it is not."""
    flow, shape = Flow.flux(), (1, 2, 8, 8)
    generator = torch.Generator().manual_seed(0)
    noise, latent = torch.randn(2, *shape, generator=generator)
    mask = prepare_mask(torch.eye(2).repeat_interleave(4, 0).repeat_interleave(4, 1), shape)
    sigmas = job_sigmas(flow, sampler=sampler, scheduler="simple", steps=6)
    plan = make_plan(sampler, sigmas, flow, seed=3)
    kept = inpaint_noise(sampler, noise, 3)
    denoise = InpaintDenoiser(Curved(), flow, mask=mask, noise=kept, latent_image=latent)
    result = sample(plan, noise, latent, denoise)
    # UniPC stops at sigma 0.001 and leaves that much of the noise.
    torch.testing.assert_close(result[mask == 0], latent[mask == 0], atol=5e-3, rtol=5e-3)
    assert not torch.allclose(result[mask == 1], latent[mask == 1], atol=0.1)


def test_a_mask_of_another_shape_is_refused() -> None:
    """Masks must have been prepared."""
    with pytest.raises(InvalidTensor) as error:
        InpaintDenoiser(
            Curved(),
            Flow.flux(),
            mask=torch.ones(8, 8),
            noise=torch.zeros(1, 2, 8, 8),
            latent_image=torch.zeros(1, 2, 8, 8),
        )
    assert error.value.field == "noise_mask"


def test_only_ddim_draws_its_own_inpaint_noise() -> None:
    """Ddim takes the seed after the job's; all others the initial noise, be it none."""
    noise = torch.zeros(1, 2, 4, 4)
    expected = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(8))
    assert torch.equal(inpaint_noise("ddim", noise, 7), expected)
    assert inpaint_noise("euler", noise, 7) is noise
    highest = inpaint_noise("ddim", noise, 2**64 - 1)
    expected = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(highest, expected)


@pytest.mark.parametrize(
    "shape", [(8, 8), (1, 8, 8), (1, 1, 8, 8), (2, 8, 8), (2, 1, 8, 8), (5, 8, 8)]
)
def test_masks_take_the_latents_shape(shape: tuple[int, ...]) -> None:
    """Leading dimensions are the batch: repeated or cut to the latent's, over all channels."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    prepared = prepare_mask(mask, (3, 4, 8, 8))
    flat = mask.reshape(-1, 8, 8)
    for image in range(3):
        for channel in range(4):
            assert torch.equal(prepared[image, channel], flat[image % len(flat)])


def test_masks_are_resized_linearly() -> None:
    """Pixels to latent cells without smoothing: a cell takes the mean of its middle pixels."""
    mask = torch.arange(16 * 24, dtype=torch.float64).reshape(16, 24)
    prepared = prepare_mask(mask, (1, 2, 2, 3))
    middle = mask.unfold(0, 8, 8).unfold(1, 8, 8)[..., 3:5, 3:5].mean((-1, -2))
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared[0, 1], middle.float())


def test_video_masks_run_over_frames() -> None:
    """For [B, C, T, H, W] a stack of masks is one per frame, for every video of the batch."""
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    prepared = prepare_mask(mask, (2, 5, 3, 4, 4))
    assert torch.equal(prepared, mask.expand(2, 5, 3, 4, 4))
    own = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prepare_mask(own, (2, 5, 3, 4, 4)), own.expand(2, 5, 3, 4, 4))


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (torch.ones(8), (1, 4, 8, 8)),
        (torch.ones(0, 8, 8), (1, 4, 8, 8)),
        (torch.ones(8, 8), (1, 4, 8)),
    ],
)
def test_what_is_no_mask_is_refused(mask: Tensor, shape: tuple[int, ...]) -> None:
    """The error names the field."""
    with pytest.raises(InvalidTensor) as error:
        prepare_mask(mask, shape)
    assert error.value.field == "noise_mask"
