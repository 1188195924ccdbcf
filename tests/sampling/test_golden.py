"""Whole jobs, against what ComfyUI itself computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditmesh.models.family import Conditioning
from ditmesh.models.info import inspect
from ditmesh.models.model import LocalModel
from ditmesh.sampling import (
    Denoiser,
    GuidedDenoiser,
    InpaintDenoiser,
    Plan,
    initial_noise,
    inpaint_noise,
    job_sigmas,
    make_plan,
    prepare_mask,
)
from tests.sampling.denoisers import sample
from tests.sampling.golden_cases import (
    CHECKPOINT,
    Branch,
    GoldenCase,
    golden_names,
    golden_tensors,
    ksampler_cases,
    load_golden,
)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    """The cases' model, in fp32, in this process."""
    return LocalModel.load(inspect(CHECKPOINT), device="cpu", dtype=torch.float32)


def plan_of(case: GoldenCase) -> Plan:
    """The plan of a case's arguments."""
    sigmas = job_sigmas(
        case.flow,
        sampler=case.sampler,
        scheduler=case.scheduler,
        steps=case.steps,
        denoise=case.denoise,
        start_step=case.start_step,
        end_step=case.end_step,
        force_full_denoise=case.force_full_denoise,
    )
    return make_plan(case.sampler, sigmas, case.flow, seed=case.seed)


def run_case(case: GoldenCase, model: LocalModel) -> Tensor:
    """A case from its arguments and seed alone, to its latent in model space."""
    plan = plan_of(case)
    latent = case.latent_image
    noise = torch.zeros_like(latent)
    if case.add_noise:
        noise = initial_noise(latent.shape, case.seed, batch_index=case.batch_index)

    def conditioning(branch: Branch) -> Conditioning:
        return Conditioning(branch.text, branch.pooled, branch.guidance)

    denoise: Denoiser = GuidedDenoiser(
        model.evaluate, conditioning(case.positive), conditioning(case.negative), case.cfg
    )
    if case.mask is not None:
        denoise = InpaintDenoiser(
            denoise,
            case.flow,
            mask=prepare_mask(case.mask, latent.shape),
            noise=inpaint_noise(case.sampler, noise, case.seed),
            latent_image=latent,
        )
    return sample(plan, noise, latent, denoise)


@pytest.mark.parametrize("name", golden_names())
def test_golden_case(name: str, model: LocalModel) -> None:
    """Sigmas to the bit, and the latent to 1e-4 at 8 steps and 5e-4 at 20."""
    case = load_golden(name)
    assert torch.equal(plan_of(case).sigmas, golden_tensors(name)["sigmas"])
    assert case.difference(run_case(case, model)) <= case.tolerance


@pytest.mark.parametrize("name", ksampler_cases())
def test_ksampler_case(name: str, model: LocalModel) -> None:
    """The same for start and end step, leftover noise, masks, batch positions and shifts."""
    case = ksampler_cases()[name]
    assert case.difference(run_case(case, model)) <= case.tolerance
