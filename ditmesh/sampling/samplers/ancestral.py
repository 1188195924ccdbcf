"""Ancestral samplers: step below the target noise level, then add fresh noise.

The flow forms are ComfyUI's; they scale the latent so that its clean share is
right after the noise is added. `lcm` is the extreme case: all noise is fresh.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import Denoiser, NoiseSource, Plan, State, interval, slope


@dataclass(frozen=True)
class _Descent:
    """How far an ancestral step goes down, and what brings it back to the target level."""

    sigma_down: Tensor
    scale: Tensor
    renoise: Tensor


def _descent(process: NoiseProcess, sigma: Tensor, sigma_next: Tensor) -> _Descent:
    """With x = alpha * latent + sigma * noise, eta 1: variances add up to those at sigma_next."""
    sigma_down = sigma_next * (1 + (sigma_next / sigma - 1))
    scale = process.alpha(sigma_next) / process.alpha(sigma_down)
    renoise = (sigma_next**2 - sigma_down**2 * scale**2) ** 0.5
    return _Descent(sigma_down, scale, renoise)


def euler_ancestral(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Euler down to sigma_down, then noise up to the next sigma."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    if sigma_next == 0:
        return state.advance(denoised)
    descent = _descent(plan.process, sigma, sigma_next)
    ratio = descent.sigma_down / sigma
    x = ratio * state.latent + (1 - ratio) * denoised
    fresh = noise(state.noise_draws, sigma, sigma_next)
    return state.advance(descent.scale * x + fresh * descent.renoise, draws=1)


def dpm_2_ancestral(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver-2 (midpoint in log sigma) down to sigma_down, then noise up again."""
    sigma, sigma_next = interval(plan, state)
    d = slope(state.latent, denoise(state.latent, sigma), sigma)
    if sigma_next == 0:
        return state.advance(state.latent + d * (sigma_next - sigma))
    descent = _descent(plan.process, sigma, sigma_next)
    middle = sigma.log().lerp(descent.sigma_down.log(), 0.5).exp()
    x_middle = state.latent + d * (middle - sigma)
    d_middle = slope(x_middle, denoise(x_middle, middle), middle)
    x = state.latent + d_middle * (descent.sigma_down - sigma)
    fresh = noise(state.noise_draws, sigma, sigma_next)
    return state.advance(descent.scale * x + fresh * descent.renoise, draws=1)


def lcm(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Latent consistency sampling: noise the denoised latent anew (arXiv:2310.04378)."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    if sigma_next == 0:
        return state.advance(denoised)
    fresh = noise(state.noise_draws, sigma, sigma_next)
    return state.advance(plan.process.noise_scaling(sigma_next, fresh, denoised), draws=1)
