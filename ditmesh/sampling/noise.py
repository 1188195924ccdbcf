"""Seeded noise: what a job starts from and what its sampler draws on the way.

All noise is made on the CPU, so that a seed means the same picture on every
machine, and a source can be rebuilt anywhere from the plan alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchsde
from torch import Tensor

from ditmesh.errors import InvalidRequest
from ditmesh.sampling.samplers import SAMPLERS
from ditmesh.sampling.solver import NoiseKind, NoiseSource, Plan, State

MAX_BATCH_INDEX = 4096
"""Highest position in a larger batch: all noise before it has to be drawn."""


def check_seed(seed: int) -> None:
    """Refuse what is no 64 bit unsigned seed.

    Raises:
        InvalidRequest: with the field `seed`.
    """
    if not 0 <= seed < 2**64:
        raise InvalidRequest(f"seed is {seed}; it must be 0 to 2^64 - 1", field="seed")


def initial_noise(
    shape: Sequence[int],
    seed: int,
    *,
    batch_index: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit normal noise of `shape` [B, C, ...], as ComfyUI draws it for this seed.

    `batch_index` [B] gives each latent's position in a larger batch: the noise
    is that which the latent at this position would get, drawn one by one.

    Raises:
        InvalidRequest: a seed out of range, or positions that are negative, too
            high or not one per latent.
    """
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(tuple(shape), dtype=dtype, generator=generator)
    if len(batch_index) != shape[0]:
        raise InvalidRequest(
            f"batch_index has {len(batch_index)} positions for {shape[0]} latents",
            field="batch_index",
        )
    if not all(0 <= position <= MAX_BATCH_INDEX for position in batch_index):
        raise InvalidRequest(f"positions must be 0 to {MAX_BATCH_INDEX}", field="batch_index")
    wanted = set(batch_index)
    drawn: dict[int, Tensor] = {}
    for position in range(max(wanted) + 1):
        noise = torch.randn((1, *shape[1:]), dtype=dtype, generator=generator)
        if position in wanted:
            drawn[position] = noise
    return torch.cat([drawn[position] for position in batch_index])


def noise_source(plan: Plan, state: State) -> NoiseSource:
    """The source of a plan's noise, shaped like the state's latent and on its device.

    It serves every state of the job, before and after this one.
    """
    kind = SAMPLERS[plan.sampler].noise
    if kind is NoiseKind.BROWNIAN:
        return BrownianNoise(plan.sigmas, plan.seed, state.latent)
    return SequentialNoise(plan.seed, state.latent)


class SequentialNoise:
    """Independent draws from one CPU generator: draw k is the k-th tensor after the seed.

    A source keeps its place in the sequence only to save work: asked for an
    earlier draw it starts over.
    """

    def __init__(self, seed: int, like: Tensor) -> None:
        self._seed = seed
        self._shape = like.shape
        self._device = like.device
        self._restart()

    def _restart(self) -> None:
        self._generator = torch.Generator().manual_seed(self._seed)
        self._next_draw = 0

    def __call__(self, draw: int, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The noise of number `draw`; sigmas do not matter."""
        if draw < self._next_draw:
            self._restart()
        while True:
            noise = torch.randn(self._shape, generator=self._generator)
            self._next_draw += 1
            if self._next_draw > draw:
                return noise.to(self._device)


class BrownianNoise:
    """Increments of a Brownian path over sigma, scaled to unit variance.

    The path depends on the seed and on the range of the **whole** job's sigmas:
    a path over a slice of the range is another one. One path covers the batch.
    """

    def __init__(self, sigmas: Tensor, seed: int, like: Tensor) -> None:
        self._sigmas = sigmas
        self._seed = seed
        self._shape = like.shape
        self._device = like.device
        self._tree: torchsde.BrownianTree | None = None

    def __call__(self, draw: int, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The path's change from `sigma` down to `sigma_next`, whatever the draw's number."""
        if self._tree is None:
            low, high = self._sigmas[self._sigmas > 0].min(), self._sigmas.max()
            start = torch.zeros(self._shape)
            self._tree = torchsde.BrownianTree(low, start, high, entropy=self._seed)
        # The tree lives on a grid of 1e-6 and warns of points that its own rounding left out.
        rise: Tensor = self._tree(round(sigma_next.item(), 6), round(sigma.item(), 6))
        return (-rise / (sigma - sigma_next).sqrt()).to(self._device)
