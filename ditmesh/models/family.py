"""What a model family must bring: from latent, sigma and conditioning to a denoised latent.

Samplers see `(x, sigma) -> denoised` only; tokens, timesteps and what the network predicts are
known here and nowhere else. They work value by value, so a job's latents lie as the network takes
them from its first step to its last, in the family's layout.

Shapes: B batch, C channels, H and W latent rows and columns, T text tokens, D text width,
P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from ditmesh.models.latents import LatentFormat
from ditmesh.sampling import NoiseProcess


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the model is told to draw: one branch of classifier-free guidance.

    `text` is [B,T,D], `pooled` [B,P], `guidance` a number or [B]; a batch of one serves every image
    of the latent's batch. Without `pooled` the model gets zeros; without `guidance` its family's
    default. `extra` holds tensors that only some families know, by name.
    """

    text: Tensor
    pooled: Tensor | None = None
    guidance: Tensor | float | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


Inputs = Mapping[str, Tensor | None]
"""What a transformer is given beside latent and sigma, by argument: the same in all steps."""


class LatentLayout(Protocol):
    """How the values of latents of one shape lie in memory between the steps of a job."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The latents' own shape, [B,C,H,W]."""
        ...

    def arrange(self, x_BCHW: Tensor) -> Tensor:
        """The latent as the family's transformer takes it, batch first."""
        ...

    def restore(self, arranged: Tensor) -> Tensor:
        """What `arrange` was given, [B,C,H,W]."""
        ...


class Family(Protocol):
    """One family of transformers. Stateless; `registry.family` returns the one of a name."""

    name: str
    latent_format: LatentFormat
    size_multiple: int
    """Latent rows and columns must be multiples of it."""
    default_shift: float
    """Time shift of the noise schedule where a client does not say otherwise."""
    default_guidance: float | None
    """Distilled guidance where a conditioning does not say otherwise."""
    transformer_class: type[nn.Module]
    """The module for one process."""

    def process(self, shift: float | None = None) -> NoiseProcess:
        """The family's noise process, with another time shift than its own if one is given.

        Raises:
            InvalidRequest: a shift that is out of range.
        """
        ...

    def layout(self, shape: Sequence[int]) -> LatentLayout:
        """The layout of latents of a shape.

        Raises:
            InvalidTensor: the family has no latents of that shape.
        """
        ...

    def inputs(self, transformer: nn.Module, layout: LatentLayout, cond: Conditioning) -> Inputs:
        """A conditioning on the transformer's device, in its dtype: once before many steps.

        Raises:
            InvalidTensor: a shape does not fit the model or the other inputs.
            InvalidRequest: an extra tensor that the family does not know.
        """
        ...

    def forward(
        self, transformer: nn.Module, arranged: Tensor, sigma_B: Tensor, inputs: Inputs
    ) -> Tensor:
        """The network's own output for a noisy model-space latent, in the same layout.

        Both are in the transformer's dtype, sigma in fp32; all on its device.
        """
        ...

    def denoised(self, arranged: Tensor, sigma_B: Tensor, output: Tensor) -> Tensor:
        """The clean latent that the output stands for, fp32; all three in one layout."""
        ...
