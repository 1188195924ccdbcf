"""Denoisers with known solutions, and a loop over all steps of a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditmesh.sampling import Denoiser, Plan, State, begin, finish, noise_source, step


@dataclass(frozen=True)
class Point:
    """All data is one point: denoised is `at`, every path a straight line to it."""

    at: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The point."""
        return torch.full_like(x, self.at)


@dataclass(frozen=True)
class Gaussian:
    """Data is normal with this mean and standard deviation, mixed as a flow.

    The noisy marginal at sigma has variance s(sigma)^2 = (1 - sigma)^2 std^2 + sigma^2.
    """

    mean: float
    std: float

    def spread(self, sigma: Tensor) -> Tensor:
        """Standard deviation of the noisy data."""
        return ((1 - sigma) ** 2 * self.std**2 + sigma**2) ** 0.5

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the data that x may stem from."""
        gain = (1 - sigma) * self.std**2 / self.spread(sigma) ** 2
        return self.mean + gain * (x - (1 - sigma) * self.mean)

    def solution(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Where the probability flow ODE takes x from sigma to sigma_next."""
        stretch = self.spread(sigma_next) / self.spread(sigma)
        return (1 - sigma_next) * self.mean + stretch * (x - (1 - sigma) * self.mean)


class Curved:
    """A smooth denoiser of no meaning, nonlinear in x and sigma, that mixes all values."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Something between -1.3 and 1.3."""
        return (x.roll(1, -1) * 0.7 + sigma).sin() + 0.3 * x.mean() * (1 - sigma)


def run(plan: Plan, state: State, denoise: Denoiser) -> State:
    """From the state to the plan's end, with a noise source of its own."""
    noise = noise_source(plan, state)
    while state.step < plan.steps:
        state = step(plan, state, denoise, noise)
    return state


def sample(plan: Plan, noise: Tensor, latent: Tensor, denoise: Denoiser) -> Tensor:
    """The whole job."""
    return finish(plan, run(plan, begin(plan, noise, latent), denoise))
