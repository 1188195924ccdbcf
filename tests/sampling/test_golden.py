"""Whole jobs, against what ComfyUI itself computes."""

from __future__ import annotations

import pytest
import torch

from ditmesh.models.family import Conditioning
from ditmesh.models.info import inspect
from ditmesh.models.model import LocalModel
from ditmesh.sampling import Flow, GuidedDenoiser, initial_noise, job_sigmas, make_plan
from tests.sampling.denoisers import sample
from tests.sampling.golden_cases import CHECKPOINT, Branch, golden_names, load_golden


@pytest.fixture(scope="module")
def model() -> LocalModel:
    """The cases' model, in fp32, in this process."""
    return LocalModel.load(inspect(CHECKPOINT), device="cpu", dtype=torch.float32)


def conditioning(branch: Branch) -> Conditioning:
    """A case's branch as the model takes it."""
    return Conditioning(branch.text, branch.pooled, branch.guidance)


@pytest.mark.parametrize("name", golden_names())
def test_golden_case(name: str, model: LocalModel) -> None:
    """Sigmas to the bit, and the latent to 1e-4 at 8 steps and 5e-4 at 20, from the seed alone."""
    case = load_golden(name)
    flow = Flow.flux()
    sigmas = job_sigmas(
        flow,
        sampler=case.sampler,
        scheduler=case.scheduler,
        steps=case.steps,
        denoise=case.denoise,
    )
    assert torch.equal(sigmas, case.sigmas)
    plan = make_plan(case.sampler, sigmas, flow, seed=case.seed)
    denoise = GuidedDenoiser(
        model.evaluate, conditioning(case.positive), conditioning(case.negative), case.cfg
    )
    noise = initial_noise(case.latent_image.shape, case.seed)
    latent = sample(plan, noise, case.latent_image, denoise)
    assert case.difference(latent) <= case.tolerance
