"""The golden cases: KSampler runs of ComfyUI 0.3.64, as job arguments and expected latents.

For every executor's tests, whatever runs the transformer. Latents here are in
model space, as jobs carry them; the files hold them in the autoencoder's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ditmesh.models.latents import FLUX

GOLDEN = Path(__file__).parent.parent / "golden"
CHECKPOINT = GOLDEN / "tiny_flux_bfl.safetensors"
"""The model of all cases; compute in fp32."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A conditioning: text [1, T, 64], pooled [1, 32]."""

    text: Tensor
    pooled: Tensor
    guidance: float


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """Arguments of a job and what ComfyUI made of it. Tensors are fp32."""

    name: str
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    denoise: float
    seed: int
    sigmas: Tensor
    noise: Tensor
    latent_image: Tensor
    positive: Branch
    negative: Branch
    expected: Tensor

    @property
    def tolerance(self) -> float:
        """Largest allowed difference from `expected` in the autoencoder's space."""
        return 1e-4 if self.steps <= 8 else 5e-4

    def difference(self, latent: Tensor) -> float:
        """Largest difference of a model-space result, in the autoencoder's space."""
        return (autoencoder_space(latent) - autoencoder_space(self.expected)).abs().max().item()


def golden_names() -> list[str]:
    """Names of all cases: the files' stems."""
    return sorted(path.stem for path in GOLDEN.glob("flux_*_n*_cfg*.safetensors"))


def load_golden(name: str) -> GoldenCase:
    """One case from its file."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        arguments = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    guidance = arguments["guidance"]
    return GoldenCase(
        name=name,
        sampler=arguments["sampler"],
        scheduler=arguments["scheduler"],
        steps=arguments["steps"],
        cfg=arguments["cfg"],
        denoise=arguments["denoise"],
        seed=arguments["seed"],
        sigmas=tensors["sigmas"],
        noise=tensors["noise"],
        latent_image=model_space(tensors["latent_image"]),
        positive=Branch(tensors["positive"], tensors["pooled_positive"], guidance),
        negative=Branch(tensors["negative"], tensors["pooled_negative"], guidance),
        expected=model_space(tensors["latent"]),
    )


def model_space(latent: Tensor) -> Tensor:
    """As ComfyUI takes a latent in: an empty one stays empty."""
    return torch.from_numpy(FLUX.to_model_space(latent.numpy())).float()


def autoencoder_space(latent: Tensor) -> Tensor:
    """As ComfyUI gives a latent out."""
    return latent / FLUX.scale + FLUX.shift
