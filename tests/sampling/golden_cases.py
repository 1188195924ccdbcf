"""The golden cases: KSampler runs of ComfyUI 0.3.64, as job arguments and expected latents.

For every executor's tests, whatever runs the transformer. Two sources: the
files of tests/golden, one plain run each, and ksampler_cases.safetensors beside
this file, whose runs use what KSampler (Advanced) has: start and end step,
leftover noise, masks, batch positions, other shifts. Latents here are in model
space, as jobs carry them; the files hold them in the autoencoder's.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ditmesh.models.latents import FLUX
from ditmesh.sampling import Flow

GOLDEN = Path(__file__).parent.parent / "golden"
CHECKPOINT = GOLDEN / "tiny_flux_bfl.safetensors"
"""The model of all cases; compute in fp32."""
KSAMPLER_CASES = Path(__file__).parent / "ksampler_cases.safetensors"


@dataclass(frozen=True, eq=False)
class Branch:
    """A conditioning: text [1, T, 64], pooled [1, 32]."""

    text: Tensor
    pooled: Tensor
    guidance: float


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """Arguments of a job and what ComfyUI made of it. Tensors are fp32.

    `add_noise` off means noise of zeros. `mask` is as the client has it.
    """

    name: str
    sampler: str
    scheduler: str
    steps: int
    cfg: float
    seed: int
    latent_image: Tensor
    positive: Branch
    negative: Branch
    expected: Tensor
    flow: Flow
    denoise: float = 1.0
    start_step: int | None = None
    end_step: int | None = None
    force_full_denoise: bool = False
    add_noise: bool = True
    batch_index: tuple[int, ...] | None = None
    mask: Tensor | None = None

    @property
    def tolerance(self) -> float:
        """Largest allowed difference from `expected` in the autoencoder's space."""
        return 1e-4 if self.steps <= 8 else 5e-4

    def difference(self, latent: Tensor) -> float:
        """Largest difference of a model-space result, in the autoencoder's space."""
        return (autoencoder_space(latent) - autoencoder_space(self.expected)).abs().max().item()


def golden_names() -> list[str]:
    """Names of the cases of tests/golden: the files' stems."""
    return sorted(path.stem for path in GOLDEN.glob("flux_*_n*_cfg*.safetensors"))


def load_golden(name: str) -> GoldenCase:
    """One case of tests/golden."""
    arguments, tensors = _read(GOLDEN / f"{name}.safetensors")
    return _case(name, arguments, tensors, arguments["guidance"])


def golden_tensors(name: str) -> dict[str, Tensor]:
    """What else a file of tests/golden holds: `noise` and `sigmas`."""
    return _read(GOLDEN / f"{name}.safetensors")[1]


@functools.cache
def ksampler_cases() -> dict[str, GoldenCase]:
    """All further cases by name."""
    arguments, tensors = _read(KSAMPLER_CASES)
    cases = {}
    for index, own in enumerate(arguments["cases"]):
        prefix = f"{index}."
        mine = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        name = f"{index}_{own['sampler']}_{own['scheduler']}"
        cases[name] = _case(name, own, mine, arguments["guidance"])
    return cases


def model_space(latent: Tensor) -> Tensor:
    """As ComfyUI takes a latent in: an empty one stays empty."""
    return torch.from_numpy(FLUX.to_model_space(latent.numpy())).float()


def autoencoder_space(latent: Tensor) -> Tensor:
    """As ComfyUI gives a latent out."""
    return latent / FLUX.scale + FLUX.shift


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        arguments = {key: json.loads(value) for key, value in file.metadata().items()}
        return arguments, {name: file.get_tensor(name) for name in names}


def _case(
    name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], guidance: float
) -> GoldenCase:
    expected = tensors["latent"]
    latent = tensors.get("latent_image", torch.zeros_like(expected))
    batch_index = arguments.get("batch_index")
    return GoldenCase(
        name=name,
        sampler=arguments["sampler"],
        scheduler=arguments["scheduler"],
        steps=arguments["steps"],
        cfg=arguments["cfg"],
        seed=arguments["seed"],
        latent_image=model_space(latent),
        positive=Branch(tensors["positive"], tensors["pooled_positive"], guidance),
        negative=Branch(tensors["negative"], tensors["pooled_negative"], guidance),
        expected=model_space(expected),
        flow=_flow(arguments.get("process")),
        denoise=arguments["denoise"],
        start_step=arguments.get("start"),
        end_step=arguments.get("end"),
        force_full_denoise=arguments.get("full", False),
        add_noise=not arguments.get("no_noise", False),
        batch_index=None if batch_index is None else tuple(batch_index),
        mask=tensors.get("mask"),
    )


def _flow(process: tuple[str, dict[str, float]] | None) -> Flow:
    if process is None:
        return Flow.flux()
    kind, arguments = process
    return Flow.flux(**arguments) if kind == "flux" else Flow.discrete(**arguments)
