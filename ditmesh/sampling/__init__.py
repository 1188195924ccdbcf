"""Sampling: schedules, samplers, noise, plan and state. Pure: no network, no device choice.

A job's sigmas (`job_sigmas`) and sampler make a plan (`make_plan`); the plan,
noise and a latent make a state (`begin`), which `step` carries on to the end
with a denoiser and a noise source, and `finish` turns into the result.
"""

from ditmesh.sampling.guidance import (
    Evaluate,
    GuidedDenoiser,
    InpaintDenoiser,
    inpaint_noise,
    prepare_mask,
)
from ditmesh.sampling.noise import initial_noise, noise_source
from ditmesh.sampling.plan import check_plan, make_plan
from ditmesh.sampling.process import Flow, NoiseProcess
from ditmesh.sampling.samplers import SAMPLERS
from ditmesh.sampling.schedules import SCHEDULERS, job_sigmas, scheduled_sigmas
from ditmesh.sampling.solver import Denoiser, NoiseKind, NoiseSource, Plan, Sampler, State
from ditmesh.sampling.state import begin, check_state, finish, step

__all__ = [
    "SAMPLERS",
    "SCHEDULERS",
    "Denoiser",
    "Evaluate",
    "Flow",
    "GuidedDenoiser",
    "InpaintDenoiser",
    "NoiseKind",
    "NoiseProcess",
    "NoiseSource",
    "Plan",
    "Sampler",
    "State",
    "begin",
    "check_plan",
    "check_state",
    "finish",
    "initial_noise",
    "inpaint_noise",
    "job_sigmas",
    "make_plan",
    "noise_source",
    "prepare_mask",
    "scheduled_sigmas",
    "step",
]
