"""The life of a job's state: begin, step, finish.

    state = begin(plan, noise, latent_image)
    while state.step < plan.steps:
        state = step(plan, state, denoise, source)
    latent = finish(plan, state)

Any state on the way can be stored, sent and continued elsewhere with the same
bits, given a denoiser that gives the same bits.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest, InvalidTensor
from ditmesh.sampling.samplers import SAMPLERS
from ditmesh.sampling.solver import Denoiser, NoiseSource, Plan, State

__all__ = ["State", "begin", "check_state", "finish", "step"]


def begin(plan: Plan, noise: Tensor, latent_image: Tensor) -> State:
    """The state before the first step: `latent_image` noised to the first sigma.

    Both are fp32 [B, C, ...] in model space. Zeros for `noise` mean that none
    is added: `latent_image` is then what `finish` gave of a job that ended at
    this sigma. A plan without steps leaves `latent_image` as it is.

    Raises:
        InvalidTensor: the shapes differ.
    """
    if noise.shape != latent_image.shape:
        raise InvalidTensor(
            f"noise is {list(noise.shape)} and the latent {list(latent_image.shape)}; "
            "they must agree",
            field="noise",
        )
    latent = latent_image.to(torch.float32)
    if plan.steps > 0:
        latent = plan.process.noise_scaling(plan.sigmas[0], noise.to(torch.float32), latent)
    return State(step=0, latent=latent, revision=plan.revision)


def step(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """The state one interval of sigmas further; `state` itself is not touched.

    The last step leaves no history.

    Raises:
        InvalidRequest: the state does not belong to the plan (`check_state`),
            or is at its end.
    """
    check_state(plan, state)
    if state.step == plan.steps:
        raise InvalidRequest(f"all {plan.steps} steps are done", field="state.step")
    after = SAMPLERS[plan.sampler].step(plan, state, denoise, noise)
    return dataclasses.replace(after, history={}) if after.step == plan.steps else after


def finish(plan: Plan, state: State) -> Tensor:
    """The job's latent, fp32 [B, C, ...] in model space, from the state after the last step.

    A latent that still holds noise is scaled so that `begin` with zero noise
    takes it up again.

    Raises:
        InvalidRequest: steps are left.
    """
    check_state(plan, state)
    if state.step != plan.steps:
        raise InvalidRequest(f"{state.step} of {plan.steps} steps are done", field="state.step")
    if plan.steps == 0:
        return state.latent
    return plan.process.inverse_noise_scaling(plan.grid[-1], state.latent)


def check_state(plan: Plan, state: State) -> None:
    """Refuse a state, perhaps from another process, that this plan cannot continue.

    Raises:
        InvalidRequest: another revision, a step outside the plan, or history
            that is not what the sampler carries at that step.
    """
    if state.revision != plan.revision:
        raise InvalidRequest(
            f"the state is of revision {state.revision} of {plan.sampler}, here is revision "
            f"{plan.revision}: start again",
            field="state.revision",
        )
    if not 0 <= state.step <= plan.steps:
        raise InvalidRequest(
            f"step {state.step} is outside the job's {plan.steps}", field="state.step"
        )
    if state.noise_draws < 0:
        raise InvalidRequest("noise draws must not be negative", field="state.noise_draws")
    expected = {
        name
        for name, since in SAMPLERS[plan.sampler].history.items()
        if since <= state.step < plan.steps
    }
    if state.history.keys() != expected:
        raise InvalidRequest(
            f"after step {state.step} of {plan.sampler} the history is {sorted(expected)}, "
            f"not {sorted(state.history)}",
            field="state.history",
        )
    for name, tensor in {"latent": state.latent, **state.history}.items():
        if tensor.shape != state.latent.shape or tensor.dtype != torch.float32:
            raise InvalidTensor(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; it must be fp32 like the latent, "
                f"{list(state.latent.shape)}",
                field=f"state.{name}",
            )
