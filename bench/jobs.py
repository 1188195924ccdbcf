"""The jobs that suites sample: shapes of a 1024x1024 picture on Flux, and the demo model's."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import synthetic
from ditmesh.client import Conditioning
from ditmesh.models import family as models
from ditmesh.models.info import inspect
from ditmesh.models.model import LocalModel
from ditmesh.models.registry import family
from ditmesh.sampling import job_sigmas
from ditmesh.tensors import as_wire

DEMO_MODEL = Path("models/pixel-portraits")
STEPS = 20


@dataclass(frozen=True)
class Case:
    """One job, for ditmesh's client and for the bare script."""

    model: str
    shape: tuple[int, int, int, int]
    conditioning: Conditioning
    sigmas: tuple[float, ...]
    guidance: bool
    stored: Path
    """The conditioning as the bare script reads it."""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def client_job(self, seed: int, **changes: Any) -> dict[str, Any]:
        """Options of `Client.sample`."""
        batch, _, rows, columns = self.shape
        job = {
            "model": self.model,
            "positive": self.conditioning,
            "size": (batch, rows, columns),
            "steps": self.steps,
            "seed": seed,
            "fallback": "forbid",
        }
        return {**job, **changes}

    def bare_job(self, seed: int, *, save: Path | None = None) -> dict[str, Any]:
        """A line for `bench.bare`."""
        return {
            "case": f"{self.model}-{self.steps}",
            "model": self.model,
            "dtype": "bfloat16",
            "shape": self.shape,
            "sigmas": self.sigmas,
            "conditioning": str(self.stored),
            "guidance": self.guidance,
            "seed": seed,
            "save": str(save) if save is not None else "",
        }


def fresh_text(seed: int) -> torch.Tensor:
    """A text embedding of Flux's shape in bf16, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, synthetic.TEXT_TOKENS, synthetic.TEXT_WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16)


def fresh_conditioning(seed: int) -> Conditioning:
    """A conditioning of Flux's shapes that nobody has seen before."""
    pooled = torch.zeros(1, synthetic.POOLED_WIDTH, dtype=torch.bfloat16)
    return Conditioning(fresh_text(seed), pooled, 3.5)


def synthetic_case(folder: Path, step_ms: int, *, steps: int = STEPS) -> Case:
    """A 1024x1024 picture on the synthetic transformer of so many ms a step."""
    conditioning = fresh_conditioning(0)
    process = family("flux").process(None)
    return Case(
        synthetic.model_name(step_ms),
        synthetic.LATENT,
        conditioning,
        _sigmas(process, steps),
        guidance=True,
        stored=_store(folder / "synthetic.npz", conditioning),
    )


def demo_case(folder: Path, *, steps: int = STEPS) -> Case:
    """A 128x128 picture on the demo model, of random text of its dimensions."""
    info = inspect(DEMO_MODEL)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 64, info.text_dim, generator=generator, dtype=torch.bfloat16)
    pooled = torch.randn(1, info.pooled_dim, generator=generator, dtype=torch.bfloat16)
    conditioning = Conditioning(text, pooled)
    return Case(
        info.name,
        (1, info.latent_channels, 16, 16),
        conditioning,
        _sigmas(family(info.family).process(info.default_shift), steps),
        guidance=info.guidance_embeds,
        stored=_store(folder / "demo.npz", conditioning),
    )


def reference(case: Case, seed: int) -> np.ndarray:
    """The demo model's latent for a case by Euler's method, in this process and in fp32."""
    model = LocalModel.load(inspect(DEMO_MODEL), device="cpu", dtype=torch.float32)
    stored = np.load(case.stored)
    text, pooled = torch.from_numpy(stored["text"]), torch.from_numpy(stored["pooled"])
    branch = models.Conditioning(text, pooled)
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(seed))
    for sigma, sigma_next in itertools.pairwise(case.sigmas):
        (denoised,) = model.evaluate(x, sigma, [branch])
        x = x + (x - denoised) / sigma * (sigma_next - sigma)
    return x.numpy()


def write_models(folder: Path, step_ms: tuple[int, ...]) -> Path:
    """A models folder with the synthetic transformers and the demo model."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    synthetic.write_models(models, step_ms)
    (models / DEMO_MODEL.name).symlink_to(DEMO_MODEL.resolve(), target_is_directory=True)
    return models


def _sigmas(process: Any, steps: int) -> tuple[float, ...]:
    sigmas = job_sigmas(process, sampler="euler", scheduler="simple", steps=steps)
    return tuple(float(sigma) for sigma in sigmas)


def _store(path: Path, conditioning: Conditioning) -> Path:
    text, pooled = as_wire(conditioning.text).numpy(), as_wire(conditioning.pooled).numpy()
    np.savez(path, text=text, pooled=pooled)
    return path
