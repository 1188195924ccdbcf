"""What a model family must bring: from latent, sigma and conditioning to a denoised latent.

Samplers see `(x, sigma) -> denoised` only; tokens, timesteps and what the network predicts are
known here and nowhere else.

Shapes: B batch, C channels, H and W latent rows and columns, T text tokens, D text width,
P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Conditioning:
        """The same conditioning on a device, its embeddings in `dtype`: once before many steps."""
        guidance = self.guidance
        return replace(
            self,
            text=self.text.to(device, dtype),
            pooled=None if self.pooled is None else self.pooled.to(device, dtype),
            guidance=guidance.to(device) if isinstance(guidance, Tensor) else guidance,
            extra={name: tensor.to(device) for name, tensor in self.extra.items()},
        )


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

    def forward(
        self, transformer: nn.Module, x_BCHW: Tensor, sigma_B: Tensor, cond: Conditioning
    ) -> Tensor:
        """The network's own output for a noisy model-space latent, [B,C,H,W] in its dtype.

        Raises:
            InvalidTensor: a shape does not fit the model or the other inputs.
            InvalidRequest: an extra tensor that the family does not know.
        """
        ...

    def denoised(self, x_BCHW: Tensor, sigma_B: Tensor, output_BCHW: Tensor) -> Tensor:
        """The clean latent that the output stands for, fp32."""
        ...
