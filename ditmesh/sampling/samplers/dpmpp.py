"""DPM-Solver++ and its SDE forms (Lu et al. 2022, arXiv:2211.01095).

Exponential integrators in lambda = log(alpha / sigma), the half log SNR, on
the denoised prediction. 2M keeps one earlier prediction, 3M two. The SDE forms
draw Brownian noise, with eta 1.
"""

from __future__ import annotations

from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import (
    Denoiser,
    NoiseSource,
    Plan,
    State,
    interval,
    shift_history,
)


def dpmpp_2m(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++(2M), with -log(sigma) for lambda on every process, as k-diffusion has it."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    h = sigma.log() - sigma_next.log()
    estimate = denoised
    if state.step > 0 and sigma_next > 0:
        ratio = (plan.nodes[state.step - 1].log() - sigma.log()) / h
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
    h = _lambda_step(plan, state.step)
    alpha_next = _alpha(plan.process, sigma_next)
    x = _sde_euler(state.latent, denoised, sigma, sigma_next, h, alpha_next)
    if state.step > 0:
        ratio = _lambda_step(plan, state.step - 1) / h
        change = denoised - state.history["denoised_1"]
        x = x - 0.5 * alpha_next * (-2 * h).expm1() * (1 / ratio) * change
    x = x + noise(state.noise_draws, sigma, sigma_next) * _sde_noise_level(sigma_next, h)
    return state.advance(x, history, draws=1)


def dpmpp_3m_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++(3M) SDE: first and second divided differences of the prediction."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    history = shift_history(state.history, "denoised", denoised, depth=2)
    if sigma_next == 0:
        return state.advance(denoised, history)
    h = _lambda_step(plan, state.step)
    alpha_next = _alpha(plan.process, sigma_next)
    x = _sde_euler(state.latent, denoised, sigma, sigma_next, h, alpha_next)
    if state.step > 0:
        phi_2 = (-2 * h).expm1() / (2 * h) + 1
        r_1 = _lambda_step(plan, state.step - 1) / h
        difference = first = (denoised - state.history["denoised_1"]) / r_1
        if state.step > 1:
            r_2 = _lambda_step(plan, state.step - 2) / h
            older = (state.history["denoised_1"] - state.history["denoised_2"]) / r_2
            difference = first + (first - older) * r_1 / (r_1 + r_2)
            phi_3 = phi_2 / (2 * h) - 0.5
            x = x - alpha_next * phi_3 * ((first - older) / (r_1 + r_2))
        x = x + alpha_next * phi_2 * difference
    x = x + noise(state.noise_draws, sigma, sigma_next) * _sde_noise_level(sigma_next, h)
    return state.advance(x, history, draws=1)


def dpmpp_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """DPM-Solver++ SDE, second order in one step: a noisy midpoint (r 1/2), then the step."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    if sigma_next == 0:
        return state.advance(denoised)
    process = plan.process
    lambda_ = process.half_log_snr(sigma)
    lambda_next = process.half_log_snr(sigma_next)
    lambda_middle = lambda_ + 0.5 * (lambda_next - lambda_)
    middle = process.sigma_of_half_log_snr(lambda_middle)

    x_middle = _renoised(
        plan,
        state.latent,
        denoised,
        (sigma, middle),
        (lambda_, lambda_middle),
        noise(state.noise_draws, sigma, middle),
    )
    denoised_middle = denoise(x_middle, middle)
    x = _renoised(
        plan,
        state.latent,
        denoised_middle,
        (sigma, sigma_next),
        (lambda_, lambda_next),
        noise(state.noise_draws + 1, sigma, sigma_next),
    )
    return state.advance(x, draws=2)


def _renoised(
    plan: Plan,
    x: Tensor,
    denoised: Tensor,
    sigmas: tuple[Tensor, Tensor],
    lambdas: tuple[Tensor, Tensor],
    fresh: Tensor,
) -> Tensor:
    """An ancestral step in lambda: down below the target with `denoised`, then noise up to it.

    The levels are those of x / alpha, where the process has variance e^(-2 lambda).
    """
    level, level_next = (-lambdas[0]).exp(), (-lambdas[1]).exp()
    alpha = sigmas[0] * lambdas[0].exp()
    alpha_next = sigmas[1] * lambdas[1].exp()
    up = (level_next**2 * (level**2 - level_next**2) / level**2) ** 0.5
    up = up.minimum(level_next)
    down = (level_next**2 - up**2) ** 0.5
    h = -down.log() - lambdas[0]
    x = alpha_next / alpha * (-h).exp() * x - alpha_next * (-h).expm1() * denoised
    return x + alpha_next * fresh * up


def _lambda_step(plan: Plan, step: int) -> Tensor:
    """h, the width of an interval in lambda."""
    half_log_snr = plan.process.half_log_snr
    return half_log_snr(plan.nodes[step + 1]) - half_log_snr(plan.nodes[step])


def _alpha(process: NoiseProcess, sigma: Tensor) -> Tensor:
    """Alpha by way of lambda, which near sigma 1 rounds otherwise than 1 - sigma."""
    return sigma * process.half_log_snr(sigma).exp()


def _sde_euler(
    x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, h: Tensor, alpha_next: Tensor
) -> Tensor:
    """The first order step of the SDE with eta 1, before its noise."""
    return sigma_next / sigma * (-h).exp() * x - alpha_next * (-2 * h).expm1() * denoised


def _sde_noise_level(sigma_next: Tensor, h: Tensor) -> Tensor:
    """Standard deviation of the noise that a step of width h adds with eta 1."""
    return sigma_next * (-(-2 * h).expm1()).sqrt()
