"""ER-SDE-Solver-3, VP form (Cui et al. 2023, arXiv:2309.06169)."""

from __future__ import annotations

import torch
from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import Denoiser, NoiseSource, Plan, State, interval

_POINTS = 200
"""Of the Riemann sums; the published solver's count, so that its error is part of the result."""


def coefficients(nodes: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Per step: weights of x, denoised, its first and second derivative, and the noise.

    In the paper's time lambda = sigma / alpha, each fp32 [5].
    """
    time = (-process.half_log_snr(nodes)).exp()
    return tuple(_weights(nodes, time, step) for step in range(len(nodes) - 1))


def _weights(nodes: Tensor, time: Tensor, step: int) -> Tensor:
    if nodes[step + 1] == 0:
        return torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    now, then = time[step], time[step + 1]
    alpha, alpha_next = nodes[step] / now, nodes[step + 1] / then
    ratio = _noise_scale(then) / _noise_scale(now)
    dt = then - now
    width = -dt / _POINTS
    points = then + torch.arange(_POINTS, dtype=torch.float32) * width
    scales = _noise_scale(points)
    first = (1 / scales).sum() * width
    second = ((points - now) / scales).sum() * width
    return torch.stack(
        [
            alpha_next / alpha * ratio,
            alpha_next * (1 - ratio),
            alpha_next * (dt + first * _noise_scale(then)),
            alpha_next * (dt**2 / 2 + second * _noise_scale(then)),
            alpha_next * (then**2 - now**2 * ratio**2).sqrt().nan_to_num(nan=0.0),
        ]
    )


def _noise_scale(time: Tensor) -> Tensor:
    """The paper's noise scale function phi for ER-SDE 5: t * (e^(t^0.3) + 10)."""
    return time * ((time**0.3).exp() + 10.0)


def er_sde(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """One to three stages, as many as there are earlier predictions."""
    sigma, sigma_next = interval(plan, state)
    denoised = denoise(state.latent, sigma)
    if sigma_next == 0:
        return state.advance(denoised, {**state.history, "denoised": denoised})
    keep, take, take_d, take_dd, spread = plan.coefficients[state.step]
    x = keep * state.latent + take * denoised
    history = {"denoised": denoised}
    if state.step > 0:
        time = (-plan.process.half_log_snr(plan.nodes)).exp()
        now = time[state.step]
        derivative = (denoised - state.history["denoised"]) / (now - time[state.step - 1])
        history["derivative"] = derivative
        x = x + take_d * derivative
        if state.step > 1:
            half_span = (now - time[state.step - 2]) / 2
            x = x + take_dd * ((derivative - state.history["derivative"]) / half_span)
    fresh = noise(state.noise_draws, sigma, sigma_next)
    return state.advance(x + spread * fresh, history, draws=1)
