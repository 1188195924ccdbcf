"""One-step samplers: Euler, Heun and the midpoint rule. They remember nothing."""

from __future__ import annotations

from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import Denoiser, NoiseSource, Plan, State, interval, slope


def euler(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Euler's method on the probability flow ODE; for a flow this is DDIM without noise too."""
    sigma, _ = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    # x + slope * (sigma_next - sigma), in one pass over the latent.
    return state.advance(state.latent.lerp(denoised, plan.coefficients[state.step].item()))


def euler_shares(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """How much of the way to the denoised latent each step goes, from 0 to 1."""
    return ((grid[:-1] - grid[1:]) / grid[:-1]).unbind()


def heun(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Heun's method, algorithm 1 of Karras et al. 2022 (arXiv:2206.00364); Euler into 0."""
    sigma, sigma_next = interval(plan, state)
    d = slope(state.latent, denoise(state.latent, sigma), sigma)
    x = state.latent + d * (sigma_next - sigma)
    if sigma_next == 0:
        return state.advance(x)
    d_next = slope(x, denoise(x, sigma_next), sigma_next)
    return state.advance(state.latent + (d + d_next) / 2 * (sigma_next - sigma))


def dpm_2(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Midpoint rule with the midpoint in log sigma, as DPM-Solver-2 (arXiv:2206.00927)."""
    sigma, sigma_next = interval(plan, state)
    d = slope(state.latent, denoise(state.latent, sigma), sigma)
    if sigma_next == 0:
        return state.advance(state.latent + d * (sigma_next - sigma))
    middle = sigma.log().lerp(sigma_next.log(), 0.5).exp()
    x_middle = state.latent + d * (middle - sigma)
    d_middle = slope(x_middle, denoise(x_middle, middle), middle)
    return state.advance(state.latent + d_middle * (sigma_next - sigma))
