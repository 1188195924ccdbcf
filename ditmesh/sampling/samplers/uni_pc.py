"""UniPC, B(h) form with data prediction (Zhao et al. 2023, arXiv:2302.04867).

Each step first corrects the latent it was handed with the model's prediction
there, then predicts the next one, so that one evaluation serves both. Whatever
the process, sigma is taken for that of a VP process with alpha =
1 / sqrt(1 + sigma^2); in x / alpha, which is how the state keeps the latent,
that scaling cancels out of all but the coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.solver import Denoiser, NoiseSource, Plan, State, shift_history

ORDER = 3
LAST_SIGMA = 0.001
"""Stands for a last sigma of 0, which has no finite log SNR."""


def grid(sigmas: Tensor, process: NoiseProcess) -> Tensor:
    """The schedule, but ending at `LAST_SIGMA` instead of 0."""
    if len(sigmas) == 0 or sigmas[-1] != 0:
        return sigmas
    return torch.cat([sigmas[:-1], sigmas.new_tensor([LAST_SIGMA])])


def bh1_coefficients(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Coefficients with B(h) = h, for `uni_pc`."""
    return _coefficients(grid, lambda h: h)


def bh2_coefficients(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Coefficients with B(h) = e^h - 1, for `uni_pc_bh2`."""
    return _coefficients(grid, torch.expm1)


def _coefficients(grid: Tensor, b: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Per step fp32 [2, 5]: the corrector to this sigma, the predictor to the next.

    Each row weighs the corrected latent of the sigma before, then this sigma's
    prediction and the up to three before it, newest first; zeros fill it up.
    """
    steps = len(grid) - 1
    rows = torch.zeros(steps, 2, 2 + ORDER)
    for arrival in range(1, steps + 1):
        predict, correct = _update(grid, arrival, _order(arrival, steps), b)
        rows[arrival - 1, 1, : len(predict)] = predict
        if arrival < steps:
            rows[arrival, 0, : len(correct)] = correct
    return rows.unbind()


def _order(arrival: int, steps: int) -> int:
    """Low at the start for want of history, low at the end for stability."""
    most = min(ORDER, steps - 1)
    return arrival if arrival < most else min(most, steps + 1 - arrival)


def _update(
    grid: Tensor, arrival: int, order: int, b: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Weights of the predictor [1 + order] and corrector [2 + order] of grid point `arrival`.

    The latent's first, then those of predictions; the corrector's begin with
    that at `arrival`. Both are x - expm1(h) * m_0 - B(h) * sum(rho_k * (m_k - m_0) / r_k)
    with h the fall of lambda, m_0 the prediction before `arrival` and r_k its
    distance to m_k in units of h.
    """
    log_alpha, log_std = _vp_logs(grid)
    lambda_, start = log_alpha - log_std, arrival - 1
    h = lambda_[start] - lambda_[arrival]
    ratios = torch.stack([lambda_[start - k] - lambda_[start] for k in range(1, order)] + [-h]) / -h
    scale = b(h)
    rho_predict, rho_correct = _rho(ratios, h, scale)

    std, alpha = log_std.exp(), log_alpha.exp()
    latent = std[arrival] / std[start] * (alpha[start] / alpha[arrival])
    earlier = -scale * rho_predict / ratios[:-1]
    predict = torch.stack([latent, -h.expm1() - earlier.sum(), *earlier])
    newest, earlier = -scale * rho_correct[-1], -scale * rho_correct[:-1] / ratios[:-1]
    rest = -h.expm1() - newest - earlier.sum()
    correct = torch.stack([latent, newest, rest, *earlier])
    return predict, correct


def _rho(ratios: Tensor, h: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the scaled differences: [order - 1] to predict, [order] to correct.

    They solve the order conditions, eq. 8 of the paper, but for the 1/2 of low orders.
    """
    order = len(ratios)
    phi, factorial, conditions = h.expm1() / h - 1, 1, []
    for k in range(1, order + 1):
        conditions.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    half = torch.tensor([0.5])
    if order == 1:
        return torch.empty(0), half
    powers = torch.stack([ratios**k for k in range(order)]).double()
    right = torch.stack(conditions).double()
    correct = torch.linalg.solve(powers, right).float()
    if order == 2:
        return half, correct
    return torch.linalg.solve(powers[:-1, :-1], right[:-1]).float(), correct


def _vp_logs(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Log alpha and log std of the VP process.

    In fp32 and by way of 1 - alpha^2, whose rounding is large for small
    sigmas: 2 % at `LAST_SIGMA`, and so part of what the sampler gives.
    """
    log_alpha = 0.5 * (1 / (sigmas * sigmas + 1)).log()
    return log_alpha, 0.5 * (1.0 - (2.0 * log_alpha).exp()).log()


def uni_pc(plan: Plan, state: State, denoise: Denoiser, noise: NoiseSource) -> State:
    """Correct, then predict; both B(h) variants differ in their coefficients only."""
    correct, predict = plan.coefficients[state.step]
    newest = _prediction(state.latent, plan.grid[state.step], denoise)
    earlier = [state.history[f"denoised_{age}"] for age in range(1, min(state.step, ORDER) + 1)]
    predictions = [newest, *earlier]
    x = state.latent
    if state.step > 0:
        x = _combine(correct, state.history["corrected"], predictions)
    history = shift_history(state.history, "denoised", newest, depth=ORDER)
    return state.advance(_combine(predict, x, predictions), {**history, "corrected": x})


def _prediction(x: Tensor, sigma: Tensor, denoise: Denoiser) -> Tensor:
    """The denoised latent by way of the noise in it, which the VP process rounds as above."""
    log_alpha, log_std = _vp_logs(sigma)
    sigma_rounded = (log_std - log_alpha).exp()
    return x - sigma_rounded / sigma * (x - denoise(x, sigma))


def _combine(weights: Tensor, x: Tensor, predictions: Sequence[Tensor]) -> Tensor:
    total = weights[0] * x
    for weight, prediction in zip(weights[1:], predictions, strict=False):
        total = total + weight * prediction
    return total
