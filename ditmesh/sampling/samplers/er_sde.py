"""ER-SDE-Solver-3, VP form (Cui et al. 2023, arXiv:2309.06169)."""

from __future__ import annotations

import torch
from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import Denoiser, NoiseSource, Plan, State, interval

_POINTS = 200
"""Of the Riemann sums; the published solver's count, so that its error is part of the result."""


def coefficients(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Per step fp32 [7]: what `er_sde` unpacks, in the paper's time lambda = sigma / alpha.

    Weights of x, of denoised and of its first and second derivative; the noise's
    standard deviation; the time since the step before, and half that since the
    one before it (NaN where there is none).
    """
    time = (-process.half_log_snr(grid)).exp()
    return tuple(_weights(grid, time, step) for step in range(len(grid) - 1))


def _weights(grid: Tensor, time: Tensor, step: int) -> Tensor:
    if grid[step + 1] == 0:
        return torch.full([7], torch.nan)
    now, then = time[step], time[step + 1]
    alpha, alpha_next = grid[step] / now, grid[step + 1] / then
    ratio = _noise_scale(then) / _noise_scale(now)
    dt = then - now
    width = -dt / _POINTS
    points = then + torch.arange(_POINTS, dtype=torch.float32) * width
    scales = _noise_scale(points)
    first = (1 / scales).sum() * width
    second = ((points - now) / scales).sum() * width
    absent = torch.tensor(torch.nan)
    return torch.stack(
        [
            alpha_next / alpha * ratio,
            alpha_next * (1 - ratio),
            alpha_next * (dt + first * _noise_scale(then)),
            alpha_next * (dt**2 / 2 + second * _noise_scale(then)),
            alpha_next * (then**2 - now**2 * ratio**2).sqrt().nan_to_num(nan=0.0),
            now - time[step - 1] if step > 0 else absent,
            (now - time[step - 2]) / 2 if step > 1 else absent,
        ]
    )


def _noise_scale(time: Tensor) -> Tensor:
    """The noise scale of the paper's ER-SDE-5: t * (e^(t^0.3) + 10)."""
    return time * ((time**0.3).exp() + 10.0)


def er_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """One to three stages, as many as there are predictions so far."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    history = {"denoised": denoised}
    if sigma_next == 0:
        return state.advance(denoised, history)
    keep, take, take_1, take_2, spread, gap, half_span = plan.coefficients[state.step]
    x = keep * state.latent + take * denoised
    if state.step > 0:
        derivative = (denoised - state.history["denoised"]) / gap
        history["derivative"] = derivative
        x = x + take_1 * derivative
        if state.step > 1:
            x = x + take_2 * ((derivative - state.history["derivative"]) / half_span)
    fresh = noise(state.noise_draws, sigma, sigma_next)
    return state.advance(x + spread * fresh, history, draws=1)
