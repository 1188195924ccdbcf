"""Noise processes: how clean latent and noise mix at a noise level sigma.

A process is peculiar to a model family; samplers and schedules know only the
protocol. Every family so far is a rectified flow, x = sigma * noise +
(1 - sigma) * latent with sigma in [0, 1] (Liu et al. 2022, arXiv:2209.03003);
`Flow` covers both ways in which they warp time towards the noisy end.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest


class NoiseProcess(Protocol):
    """What samplers, schedules and the executor need to know of a model's noise.

    Sigmas are fp32 tensors of any shape that broadcasts to the latent's.
    """

    @property
    def is_flow(self) -> bool:
        """Whether x = sigma * noise + (1 - sigma) * latent, so that sigma ends at 1."""
        ...

    @property
    def table(self) -> Tensor:
        """The sigmas the model was trained on, fp32 CPU, ascending; do not write to it."""
        ...

    @property
    def sigma_min(self) -> Tensor:
        """The smallest sigma of the table, 0-dim."""
        ...

    @property
    def sigma_max(self) -> Tensor:
        """The largest sigma of the table, 0-dim."""
        ...

    def sigma(self, timestep: Tensor) -> Tensor:
        """Sigma of a timestep in the model's own units."""
        ...

    def timestep(self, sigma: Tensor) -> Tensor:
        """Timestep of a sigma: what the model is told."""
        ...

    def sigma_of_percent(self, percent: float) -> float:
        """Sigma at which `percent` (0 to 1) of the sampling is over."""
        ...

    def alpha(self, sigma: Tensor) -> Tensor:
        """The share of the clean latent at sigma."""
        ...

    def half_log_snr(self, sigma: Tensor) -> Tensor:
        """log(alpha / sigma), the lambda of the DPM-Solver papers (arXiv:2206.00927)."""
        ...

    def sigma_of_half_log_snr(self, half_log_snr: Tensor) -> Tensor:
        """Inverse of `half_log_snr`."""
        ...

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        """The noisy latent at sigma."""
        ...

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        """Undo the scaling of the latent's own share, for a latent that still holds noise."""
        ...


TimeShift = Literal["exponential", "linear"]


@dataclass(frozen=True)
class Flow:
    """Rectified flow with shifted time.

    `exponential` is Flux: sigma = e^shift / (e^shift + 1/t - 1), 10000 trained
    levels, timestep t = sigma. `linear` is SD3 and most video models: sigma =
    shift * t / (1 + (shift - 1) * t), 1000 levels, timestep = sigma *
    multiplier (Esser et al. 2024, arXiv:2403.03206). Build them with `flux`
    and `discrete`.
    """

    shift: float
    time_shift: TimeShift
    multiplier: float

    def __post_init__(self) -> None:
        if self.time_shift not in ("exponential", "linear"):
            raise InvalidRequest(
                f"time shift {self.time_shift!r} is neither 'exponential' nor 'linear'",
                field="time_shift",
            )
        lowest = -16.0 if self.time_shift == "exponential" else 0.0
        if not lowest < self.shift <= (16.0 if self.time_shift == "exponential" else 1e4):
            raise InvalidRequest(
                f"shift {self.shift} is out of range: above {lowest:g} and finite", field="shift"
            )
        if not 0.0 < self.multiplier < math.inf:
            raise InvalidRequest(
                f"multiplier {self.multiplier} must be positive and finite", field="multiplier"
            )

    @classmethod
    def flux(cls, shift: float = 1.15) -> Flow:
        """Flux's process; `shift` is mu, 1.15 at 1024x1024."""
        return cls(shift, "exponential", 1.0)

    @classmethod
    def discrete(cls, shift: float = 3.0, multiplier: float = 1000.0) -> Flow:
        """The process of SD3 (shift 3) and its kin; `multiplier` scales the timestep."""
        return cls(shift, "linear", multiplier)

    @property
    def is_flow(self) -> bool:
        """True: sigma runs from 1 (noise) to 0 (latent)."""
        return True

    @property
    def table(self) -> Tensor:
        """Trained sigmas, fp32 CPU, ascending: [10000] exponential, [1000] linear."""
        return _table(self)

    @property
    def sigma_min(self) -> Tensor:
        """The smallest trained sigma, 0-dim."""
        return self.table[0]

    @property
    def sigma_max(self) -> Tensor:
        """The largest trained sigma, 0-dim; 1 for every shift."""
        return self.table[-1]

    def sigma(self, timestep: Tensor) -> Tensor:
        """Sigma of a timestep: (0, 1] exponential, (0, multiplier] linear."""
        if self.time_shift == "exponential":
            odds = math.exp(self.shift)
            return odds / (odds + (1 / timestep - 1))
        t = timestep / self.multiplier
        return t if self.shift == 1.0 else self.shift * t / (1 + (self.shift - 1) * t)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Timestep of a sigma; the shift is already in sigma."""
        return sigma if self.time_shift == "exponential" else sigma * self.multiplier

    def sigma_of_percent(self, percent: float) -> float:
        """Sigma at which `percent` (0 to 1) of the sampling is over."""
        if percent <= 0.0:
            return 1.0
        if percent >= 1.0:
            return 0.0
        t = 1.0 - percent
        if self.time_shift == "exponential":
            odds = math.exp(self.shift)
            return odds / (odds + (1 / t - 1))
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, sigma: Tensor) -> Tensor:
        """1 - sigma."""
        return 1 - sigma

    def half_log_snr(self, sigma: Tensor) -> Tensor:
        """log((1 - sigma) / sigma); infinite at 0 and 1."""
        return -sigma.logit()

    def sigma_of_half_log_snr(self, half_log_snr: Tensor) -> Tensor:
        """1 / (1 + e^lambda)."""
        return (-half_log_snr).sigmoid()

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        """Sigma * noise + (1 - sigma) * latent."""
        noisy = sigma * noise
        share = 1.0 - sigma
        if share:
            # Of pure noise nothing is to be added: three passes over the latent less.
            noisy += share * latent
        return noisy

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        """Latent / (1 - sigma): `noise_scaling` with zero noise takes it back."""
        return latent / (1.0 - sigma) if sigma else latent


@functools.lru_cache(maxsize=64)
def _table(flow: Flow) -> Tensor:
    """Sigmas of evenly spaced timesteps. Cached: every schedule reads it."""
    levels = 10000 if flow.time_shift == "exponential" else 1000
    return flow.sigma(torch.arange(1, levels + 1) / levels * flow.multiplier)
