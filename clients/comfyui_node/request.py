"""What a KSampler node is asked to do, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Conditioning = Sequence[Sequence[Any]]
"""ComfyUI's CONDITIONING: entries of an embedding [B,T,D] and a dict of options."""


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """The inputs of KSampler and KSampler Advanced, by the names of ComfyUI's own sampler.

    `latent` is a LATENT: a dict with `samples` [B,C,H,W] and perhaps `noise_mask` and
    `batch_index`.
    """

    model: Any
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    positive: Conditioning
    negative: Conditioning
    latent: dict[str, Any] = field(repr=False)
    denoise: float = 1.0
    disable_noise: bool = False
    start_step: int | None = None
    last_step: int | None = None
    force_full_denoise: bool = False
