"""Linear multistep samplers: LMS, DEIS, iPNDM and RES.

All but RES extrapolate the slope dx/dsigma by the polynomial through the last
few steps and differ in what they integrate it against.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import (
    Denoiser,
    NoiseSource,
    Plan,
    State,
    interval,
    shift_history,
    slope,
)

LMS_ORDER = 4
DEIS_ORDER = 3
_IPNDM = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for equal steps, newest slope first."""


def lms_coefficients(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Per step the weights of the last slopes, newest first: Lagrange polynomials in sigma."""
    sigmas = grid.double().numpy()
    weights = []
    for step in range(len(sigmas) - 1):
        # From the present sigma, or close sigmas far from 0 would cancel.
        past = sigmas[step::-1][:LMS_ORDER] - sigmas[step]
        end = sigmas[step + 1] - sigmas[step]
        weights.append([_lagrange(past, j).integ()(end) for j in range(len(past))])
    return tuple(torch.tensor(w, dtype=torch.float32) for w in weights)


def _lagrange(points: np.ndarray[tuple[int], np.dtype[np.float64]], j: int) -> Polynomial:
    """The polynomial that is 1 at points[j] and 0 at the others."""
    others = np.delete(points, j)
    basis: Polynomial = Polynomial.fromroots(others) if len(others) else Polynomial([1.0])
    return basis / float(np.prod(points[j] - others))


def lms(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Linear multistep of order 4 on unequal steps."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    d = slope(state.latent, denoised, sigma)
    x = denoised
    if sigma_next > 0:
        x = state.latent + _weighted(plan.coefficients[state.step], d, state)
    return state.advance(x, shift_history(state.history, "slope", d, LMS_ORDER - 1))


def deis_coefficients(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Per step the weights of the last slopes: tAB-DEIS (Zhang & Chen 2022, arXiv:2204.13902).

    The Lagrange polynomials run over the time of a VP process (beta linear,
    sigma 0.002 to 80) and are integrated by a sum over 10000 points in fp32.
    """
    time, beta_0, beta_1 = _vp_time(grid)
    return tuple(_deis_weights(grid, time, beta_0, beta_1, step) for step in range(len(grid) - 1))


def _vp_time(sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Time of the VP process at each sigma, and its beta at times 0 and 1."""
    epsilon = 1e-3
    low = (torch.tensor(0.002) ** 2 + 1).log()
    high = (torch.tensor(80.0) ** 2 + 1).log()
    growth = 2 * (low / epsilon - high) / (epsilon - 1)
    start = high - 0.5 * growth
    time = ((start**2 + 2 * growth * (sigmas**2 + 1).log()).sqrt() - start) / growth
    return time, start, growth + start


def _deis_weights(grid: Tensor, time: Tensor, beta_0: Tensor, beta_1: Tensor, step: int) -> Tensor:
    if step == 0 or grid[step + 1] == 0:
        return (grid[step + 1] - grid[step]).reshape(1)
    points = 10_000
    past = time[: step + 1].flip(0)[:DEIS_ORDER]
    times = torch.linspace(time[step].item(), time[step + 1].item(), points)
    alpha = (-0.5 * times**2 * (beta_1 - beta_0) - times * beta_0).exp()
    integrand = 0.5 * (times * (beta_1 - beta_0) + beta_0) / (alpha * (1 - alpha)).sqrt()
    width = (time[step + 1] - time[step]) / points
    weights = []
    for j, at in enumerate(past):
        basis = torch.ones_like(times)
        for k, other in enumerate(past):
            if k != j:
                basis = basis * ((times - other) / (at - other))
        weights.append((integrand * basis).sum() * width)
    return torch.stack(weights)


def deis(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DEIS of order 3; Euler for the first step and into 0."""
    sigma, _ = interval(plan, state)
    d = slope(state.latent, denoise(state.latent, sigma), sigma)
    x = state.latent + _weighted(plan.coefficients[state.step], d, state)
    return state.advance(x, shift_history(state.history, "slope", d, DEIS_ORDER - 1))


def ipndm(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Improved PNDM (Zhang & Chen 2022, arXiv:2204.13902): Adams-Bashforth, order up to 4."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    d = slope(state.latent, denoised, sigma)
    x = denoised
    if sigma_next > 0:
        weights = torch.tensor(_IPNDM[min(state.step, 3)])
        x = state.latent + (sigma_next - sigma) * _weighted(weights, d, state)
    return state.advance(x, shift_history(state.history, "slope", d, 3))


def _weighted(weights: Tensor, newest: Tensor, state: State) -> Tensor:
    """The sum of the last slopes, each with its weight, newest first."""
    total = weights[0] * newest
    for age in range(1, len(weights)):
        total = total + weights[age] * state.history[f"slope_{age}"]
    return total


def res_multistep(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """RES, refined exponential solver, 2nd order multistep (arXiv:2308.02157); Euler into 0."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    if state.step == 0 or sigma_next == 0:
        x = state.latent + slope(state.latent, denoised, sigma) * (sigma_next - sigma)
        return state.advance(x, {"denoised_1": denoised})
    h = sigma.log() - sigma_next.log()
    c_2 = (sigma.log() - plan.grid[state.step - 1].log()) / h
    phi_1 = (-h).expm1() / -h
    phi_2 = (phi_1 - 1.0) / -h
    estimate = (phi_1 - phi_2 / c_2) * denoised + phi_2 / c_2 * state.history["denoised_1"]
    return state.advance((-h).exp() * state.latent + h * estimate, {"denoised_1": denoised})
