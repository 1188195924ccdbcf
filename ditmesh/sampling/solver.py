"""The vocabulary of sampling: plan, state, denoiser, noise source, sampler.

A sampler is one pure function `(plan, state, denoise, noise) -> state` that
covers one interval of the plan's sigmas. Everything that it remembers from
earlier intervals is in the state, so any process can go on where another
stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Protocol

from torch import Tensor

from ditmesh.sampling.process import NoiseProcess

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(x, sigma) -> denoised`: x fp32 [B, C, ...] in model space, sigma 0-dim fp32 on the CPU."""


class NoiseSource(Protocol):
    """Where a sampler gets fresh noise from."""

    def __call__(self, draw: int, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Unit normal noise shaped like the latent, on its device.

        `draw` counts the job's draws from 0. The same arguments give the same
        bits, in whatever order and process they are asked for.
        """
        ...


class NoiseKind(Enum):
    """What noise a sampler draws while it steps."""

    NONE = "none"
    SEQUENTIAL = "sequential"
    """One independent tensor a draw, from a generator."""
    BROWNIAN = "brownian"
    """Increments of one Brownian path over sigma, so that they agree between step counts."""


@dataclass(frozen=True)
class Plan:
    """What is fixed for all steps of a job: computed once, the same wherever it is computed.

    `sigmas` [n + 1] is the job's schedule. `grid` [n + 1] are the sigmas that
    the sampler visits: the schedule, but for an end point that the sampler
    cannot take. `coefficients` holds one fp32 tensor a step for samplers that
    want any, else nothing.
    """

    sampler: str
    sigmas: Tensor
    process: NoiseProcess
    seed: int
    grid: Tensor
    coefficients: tuple[Tensor, ...]
    revision: int

    @cached_property
    def steps(self) -> int:
        """Number of intervals; 0 means that the latent is returned as it came."""
        return max(len(self.sigmas) - 1, 0)

    @cached_property
    def nodes(self) -> tuple[Tensor, ...]:
        """`grid` one by one, 0-dim: for steps, of which each takes two."""
        return self.grid.unbind()


@dataclass(frozen=True)
class State:
    """How far a job got: all that is needed, beside its plan and denoiser, to go on.

    `latent` [B, C, ...] and `history` are fp32 and in model space; `latent` is
    noisy at `plan.grid[step]`. `revision` is the sampler's: states of
    another revision cannot be continued.
    """

    step: int
    latent: Tensor
    history: Mapping[str, Tensor] = field(default_factory=dict)
    noise_draws: int = 0
    revision: int = 1

    def map(self, change: Callable[[Tensor], Tensor]) -> State:
        """The same state, each of its tensors as `change` makes it."""
        history = {name: change(tensor) for name, tensor in self.history.items()}
        return replace(self, latent=change(self.latent), history=history)

    def advance(
        self, latent: Tensor, history: Mapping[str, Tensor] | None = None, *, draws: int = 0
    ) -> State:
        """The state one step on, with the history that the next step will need."""
        return State(
            step=self.step + 1,
            latent=latent,
            history=history or {},
            noise_draws=self.noise_draws + draws,
            revision=self.revision,
        )


def same_sigmas(sigmas: Tensor, process: NoiseProcess) -> Tensor:
    """For samplers that visit the schedule as it is."""
    return sigmas


def no_coefficients(grid: Tensor, process: NoiseProcess) -> tuple[Tensor, ...]:
    """For samplers that work their few numbers out as they go."""
    return ()


@dataclass(frozen=True)
class Sampler:
    """A sampler: its step, and what a plan and an executor must know about it.

    `history` names each tensor that the state carries and the step count from
    which on it does. `evaluations` is the most model calls of one step.
    `revision` rises with every change that alters results by more than rounding, or the history.
    """

    step: Callable[[Plan, State, Denoiser, NoiseSource], State]
    grid: Callable[[Tensor, NoiseProcess], Tensor] = same_sigmas
    coefficients: Callable[[Tensor, NoiseProcess], tuple[Tensor, ...]] = no_coefficients
    history: Mapping[str, int] = field(default_factory=dict)
    noise: NoiseKind = NoiseKind.NONE
    evaluations: int = 1
    min_steps: int = 1
    revision: int = 1


def interval(plan: Plan, state: State) -> tuple[Tensor, Tensor]:
    """The sigmas, 0-dim, between which the next step goes."""
    return plan.nodes[state.step], plan.nodes[state.step + 1]


def slope(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """dx/dsigma of the probability flow ODE (Karras et al. 2022, arXiv:2206.00364, eq. 3)."""
    return (x - denoised) / sigma


def offset_first(sigmas: Tensor, process: NoiseProcess) -> Tensor:
    """Nodes for samplers that work in log SNR: a flow's first sigma of 1 has none.

    It becomes the sigma at 0.01 % of the sampling.
    """
    if not (process.is_flow and len(sigmas) > 1 and sigmas[0] >= 1):
        return sigmas
    grid = sigmas.clone()
    grid[0] = process.sigma_of_percent(1e-4)
    return grid


def shift_history(
    history: Mapping[str, Tensor], name: str, newest: Tensor, depth: int
) -> dict[str, Tensor]:
    """History with `newest` as `name_1` and older entries moved down, at most `depth` of them."""
    kept = {
        f"{name}_{age + 1}": history[f"{name}_{age}"]
        for age in range(1, depth)
        if f"{name}_{age}" in history
    }
    return {f"{name}_1": newest, **kept}
