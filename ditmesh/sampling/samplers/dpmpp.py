"""DPM-Solver++ and its SDE forms (Lu et al. 2022, arXiv:2211.01095).

Exponential integrators in lambda = log(alpha / sigma), the half log SNR, on
the denoised prediction. 2M keeps one earlier prediction, 3M two. The SDE forms
draw Brownian noise, with eta 1.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ditmesh.sampling.solver import (
    Denoiser,
    NoiseSource,
    Plan,
    State,
    interval,
    shift_history,
)


class _Level(NamedTuple):
    """A noise level: sigma and its lambda, both 0-dim."""

    sigma: Tensor
    lambda_: Tensor

    @property
    def alpha(self) -> Tensor:
        """By way of lambda, which near sigma 1 rounds otherwise than 1 - sigma."""
        return self.sigma * self.lambda_.exp()


def _level(plan: Plan, step: int) -> _Level:
    sigma = plan.grid[step]
    return _Level(sigma, plan.process.half_log_snr(sigma))


def _width(plan: Plan, step: int) -> Tensor:
    """h, the width of an interval in lambda."""
    return _level(plan, step + 1).lambda_ - _level(plan, step).lambda_


def dpmpp_2m(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++(2M), with -log(sigma) for lambda on every process, as k-diffusion has it."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    h = sigma.log() - sigma_next.log()
    estimate = denoised
    if state.step > 0 and sigma_next > 0:
        ratio = (plan.grid[state.step - 1].log() - sigma.log()) / h
        weight = 1 / (2 * ratio)
        estimate = (1 + weight) * denoised - weight * state.history["denoised_1"]
    x = sigma_next / sigma * state.latent - (-h).expm1() * estimate
    return state.advance(x, {"denoised_1": denoised})


def dpmpp_2m_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++(2M) SDE with the midpoint correction."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    history = {"denoised_1": denoised}
    if sigma_next == 0:
        return state.advance(denoised, history)
    h = _width(plan, state.step)
    x = _sde_euler(plan, state, denoised)
    if state.step > 0:
        ratio = _width(plan, state.step - 1) / h
        change = denoised - state.history["denoised_1"]
        x = x - 0.5 * _level(plan, state.step + 1).alpha * (-2 * h).expm1() * (1 / ratio) * change
    return state.advance(x + _sde_noise(plan, state, noise), history, draws=1)


def dpmpp_3m_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++(3M) SDE: first and second divided differences of the prediction."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    history = shift_history(state.history, "denoised", denoised, depth=2)
    if sigma_next == 0:
        return state.advance(denoised, history)
    h = _width(plan, state.step)
    alpha_next = _level(plan, state.step + 1).alpha
    x = _sde_euler(plan, state, denoised)
    if state.step > 0:
        first, second = _differences(plan, state, denoised)
        phi_2 = (-2 * h).expm1() / (2 * h) + 1
        x = x + alpha_next * phi_2 * first
        if second is not None:
            x = x - alpha_next * (phi_2 / (2 * h) - 0.5) * second
    return state.advance(x + _sde_noise(plan, state, noise), history, draws=1)


def _differences(plan: Plan, state: State, denoised: Tensor) -> tuple[Tensor, Tensor | None]:
    """First and, from the third step on, second derivative of the prediction in units of h."""
    h = _width(plan, state.step)
    r_1 = _width(plan, state.step - 1) / h
    first = (denoised - state.history["denoised_1"]) / r_1
    if state.step == 1:
        return first, None
    r_2 = _width(plan, state.step - 2) / h
    older = (state.history["denoised_1"] - state.history["denoised_2"]) / r_2
    return first + (first - older) * r_1 / (r_1 + r_2), (first - older) / (r_1 + r_2)


def _sde_euler(plan: Plan, state: State, denoised: Tensor) -> Tensor:
    """The first order step of the SDE, before its noise."""
    here, there = _level(plan, state.step), _level(plan, state.step + 1)
    h = there.lambda_ - here.lambda_
    decay = there.sigma / here.sigma * (-h).exp()
    return decay * state.latent - there.alpha * (-2 * h).expm1() * denoised


def _sde_noise(plan: Plan, state: State, noise: NoiseSource) -> Tensor:
    """The noise that the SDE adds over the step."""
    sigma, sigma_next = interval(plan, state)
    h = _width(plan, state.step)
    return noise(state.noise_draws, sigma, sigma_next) * sigma_next * (-(-2 * h).expm1()).sqrt()


def dpmpp_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++ SDE, second order in one step: a noisy midpoint in lambda, then the step."""
    here, there = _level(plan, state.step), _level(plan, state.step + 1)
    denoised = denoise(state.latent, here.sigma)
    if there.sigma == 0:
        return state.advance(denoised)
    halfway = here.lambda_ + 0.5 * (there.lambda_ - here.lambda_)
    middle = _Level(plan.process.sigma_of_half_log_snr(halfway), halfway)

    fresh = noise(state.noise_draws, here.sigma, middle.sigma)
    x_middle = _ancestral(state.latent, denoised, here, middle, fresh)
    denoised_middle = denoise(x_middle, middle.sigma)
    fresh = noise(state.noise_draws + 1, here.sigma, there.sigma)
    return state.advance(_ancestral(state.latent, denoised_middle, here, there, fresh), draws=2)


def _ancestral(x: Tensor, denoised: Tensor, here: _Level, there: _Level, fresh: Tensor) -> Tensor:
    """Down below the target with `denoised`, then noise up to it.

    The standard deviations `up` and `down` are those in x / alpha, where noise is e^-lambda.
    """
    std, std_next = (-here.lambda_).exp(), (-there.lambda_).exp()
    up = (std_next**2 * (std**2 - std_next**2) / std**2) ** 0.5
    up = up.minimum(std_next)
    down = (std_next**2 - up**2) ** 0.5
    h = -down.log() - here.lambda_
    x = there.alpha / here.alpha * (-h).exp() * x - there.alpha * (-h).expm1() * denoised
    return x + there.alpha * fresh * up
