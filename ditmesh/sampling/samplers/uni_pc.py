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


def nodes(sigmas: Tensor, process: NoiseProcess) -> Tensor:
    """The schedule, ending at `LAST_SIGMA` instead of 0."""
    if len(sigmas) == 0 or sigmas[-1] != 0:
        return sigmas
    return torch.cat([sigmas[:-1], sigmas.new_tensor([LAST_SIGMA])])


def bh1_coefficients(nodes: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Coefficients with B(h) = h, for `uni_pc`."""
    return _coefficients(nodes, lambda h: h)


def bh2_coefficients(nodes: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """Coefficients with B(h) = e^h - 1, for `uni_pc_bh2`."""
    return _coefficients(nodes, torch.expm1)


def _coefficients(nodes: Tensor, b: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Per step fp32 [2, 5]: the corrector to this node, the predictor to the next.

    Each row weighs the latent at the node before, then this node's prediction
    and the up to three before it, newest first.
    """
    steps = len(nodes) - 1
    rows = [torch.zeros(2, 2 + ORDER) for _ in range(steps)]
    for arrival in range(1, steps + 1):
        latent, past, new = _update(nodes, arrival, _order(arrival, steps), b)
        predict = rows[arrival - 1][1]
        predict[0], predict[1 : 1 + len(past[0])] = latent, past[0]
        if arrival < steps:
            correct = rows[arrival][0]
            correct[0], correct[1], correct[2 : 2 + len(past[1])] = latent, new, past[1]
    return tuple(rows)


def _order(arrival: int, steps: int) -> int:
    """Low at the start for want of history, low at the end for stability."""
    most = min(ORDER, steps - 1)
    return arrival if arrival < most else min(most, steps + 1 - arrival)


def _update(
    nodes: Tensor, arrival: int, order: int, b: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Weights of an update from node `arrival - 1` to `arrival`.

    Returns the latent's weight, the past predictions' weights (newest first)
    in predictor and corrector, and the new prediction's weight in the corrector.
    """
    log_alpha, log_std = _vp_logs(nodes)
    lambda_ = log_alpha - log_std
    start = arrival - 1
    h = -(lambda_[arrival] - lambda_[start])
    ratios = torch.stack([lambda_[start - k] - lambda_[start] for k in range(1, order)] + [-h]) / -h
    scale = b(h)
    rho_predict, rho_correct = _rho(ratios, h, scale)

    std, alpha = log_std.exp(), log_alpha.exp()
    latent = std[arrival] / std[start] * (alpha[start] / alpha[arrival])
    past = []
    for rho, rest in ((rho_predict, 0.0), (rho_correct[:-1], rho_correct[-1])):
        differences = -scale * rho / ratios[:-1]
        newest = -h.expm1() - differences.sum() + scale * rest
        past.append(torch.cat([newest.reshape(1), differences]))
    return latent, (past[0], past[1]), -scale * rho_correct[-1]


def _rho(ratios: Tensor, h: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the scaled differences: [order - 1] to predict, [order] to correct."""
    order = len(ratios)
    phi = h.expm1() / h - 1
    factorial = 1
    right = []
    for k in range(1, order + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    powers, moments = torch.stack([ratios**k for k in range(order)]), torch.stack(right)
    half = torch.tensor([0.5])
    if order == 1:
        return torch.empty(0), half
    correct = torch.linalg.solve(powers, moments)
    if order == 2:
        return half, correct
    return torch.linalg.solve(powers[:-1, :-1], moments[:-1]), correct


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
    newest = denoise(state.latent, plan.nodes[state.step])
    earlier = [state.history[f"denoised_{age}"] for age in range(1, min(state.step, ORDER) + 1)]
    predictions = [newest, *earlier]
    x = state.latent
    if state.step > 0:
        x = _combine(correct, state.history["corrected"], predictions)
    history = shift_history(state.history, "denoised", newest, depth=ORDER)
    return state.advance(_combine(predict, x, predictions), {**history, "corrected": x})


def _combine(weights: Tensor, x: Tensor, predictions: Sequence[Tensor]) -> Tensor:
    total = weights[0] * x
    for weight, prediction in zip(weights[1:], predictions, strict=False):
        total = total + weight * prediction
    return total
