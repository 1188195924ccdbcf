"""Jobs for the clients of the end-to-end tests: golden cases, random ones, and their parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ditmesh.client import Conditioning, SampleResult
from ditmesh.sampling import SAMPLERS, SCHEDULERS
from tests.e2e.cluster import MODEL
from tests.sampling.golden_cases import Branch, GoldenCase

Latent = npt.NDArray[np.float32]


def golden_job(case: GoldenCase, **changes: Any) -> dict[str, Any]:
    """A golden case as a client writes it; the result is then in model space."""
    job: dict[str, Any] = {
        "model": MODEL,
        "sampler": case.sampler,
        "scheduler": case.scheduler,
        "steps": case.steps,
        "denoise": case.denoise,
        "start_step": case.start_step,
        "end_step": case.end_step,
        "keep_leftover_noise": not case.force_full_denoise,
        "seed": case.seed,
        "cfg": case.cfg,
        "latent": case.latent_image,
        "positive": _conditioning(case.positive),
        "negative": _conditioning(case.negative),
        "noise": None if case.add_noise else False,
        "batch_index": case.batch_index or (),
        "noise_mask": case.mask,
        "shift": case.flow.shift,
    }
    return {**job, **changes}


def random_job(
    seed: int, *, size: tuple[int, int, int] = (1, 8, 8), **changes: Any
) -> dict[str, Any]:
    """A small job of 8 steps; text, pooled embedding and noise come from `seed`."""
    rng = np.random.default_rng(seed)
    job: dict[str, Any] = {
        "model": MODEL,
        "steps": 8,
        "seed": seed,
        "size": size,
        "positive": random_conditioning(rng, tokens=16),
    }
    return {**job, **changes}


_EVEN = ("simple", "sgm_uniform", "beta", "linear_quadratic")
"""Schedules without a leap to a tiny last sigma. Heun's method divides by the sigma that a step
leads to: a step from 0.4 to 0.0003 magnifies rounding 700-fold, whoever computes it."""


def any_job(seed: int) -> dict[str, Any]:
    """A small job of which everything is random: what it is follows from `seed`."""
    rng = np.random.default_rng(seed)
    guided = bool(rng.integers(2))
    sampler = str(rng.choice(sorted(SAMPLERS)))
    return {
        "model": MODEL,
        "sampler": sampler,
        "scheduler": str(rng.choice(_EVEN if sampler == "heun" else sorted(SCHEDULERS))),
        "steps": int(rng.integers(2, 7)),
        "denoise": float(rng.choice([1.0, 1.0, 0.6])),
        "seed": int(rng.integers(2**63)),
        "cfg": float(rng.uniform(1.5, 5.0)) if guided else 1.0,
        "size": (int(rng.integers(1, 3)), *(2 * int(n) for n in rng.integers(2, 8, 2))),
        "positive": random_conditioning(rng, tokens=int(rng.integers(1, 40))),
        "negative": random_conditioning(rng, tokens=int(rng.integers(1, 40))) if guided else None,
    }


def random_conditioning(rng: np.random.Generator, *, tokens: int) -> Conditioning:
    """Conditioning as wide as the golden model wants it."""
    return Conditioning(
        text=rng.standard_normal((1, tokens, 64), dtype=np.float32),
        pooled=rng.standard_normal((1, 32), dtype=np.float32),
        guidance=3.5,
    )


def golden_difference(case: GoldenCase, result: SampleResult) -> float:
    """Largest difference from ComfyUI's latent, in the space in which ComfyUI gives it."""
    return case.difference(torch.from_numpy(result.latent))


def difference(one: Latent, other: Latent) -> float:
    """Largest difference of two latents."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


def executors(result: SampleResult) -> list[tuple[str, int, int]]:
    """Who did which steps."""
    return [(s.executor, s.first_step, s.end_step) for s in result.summary.segments]


def _conditioning(branch: Branch) -> Conditioning:
    return Conditioning(branch.text, branch.pooled, branch.guidance)
