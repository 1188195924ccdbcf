"""The jobs of the chaos: a dozen recipes, each sampled once undisturbed, and a plan by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.chaos.faults import Fault
from tests.e2e.cluster import MODEL
from tests.e2e.jobs import random_conditioning

_RECIPES: tuple[tuple[str, str, float], ...] = (
    ("euler", "simple", 1.0),
    ("dpmpp_2m", "karras", 1.0),
    ("heun", "normal", 1.0),
    ("lms", "simple", 1.0),
    ("ddim", "simple", 1.0),
    ("euler_ancestral", "simple", 1.0),
    ("dpmpp_2m_sde", "simple", 1.0),
    ("uni_pc", "simple", 1.0),
    ("ipndm", "simple", 1.0),
    ("euler", "beta", 3.0),
    ("dpmpp_2m", "sgm_uniform", 2.0),
    ("res_multistep", "simple", 1.0),
)
RECIPES = len(_RECIPES)
_SIZES = ((1, 24, 24), (1, 16, 32), (1, 22, 26))


def recipe(number: int, steps: int) -> dict[str, Any]:
    """The arguments of a job; the same for the same number."""
    sampler, scheduler, cfg = _RECIPES[number]
    rng = np.random.default_rng(number)
    job: dict[str, Any] = {
        "model": MODEL,
        "sampler": sampler,
        "scheduler": scheduler,
        "cfg": cfg,
        # An evaluation more a step, or a branch more, and the step takes twice as long.
        "steps": steps // 2 if cfg != 1.0 or sampler == "heun" else steps,
        "seed": number,
        "size": _SIZES[number % len(_SIZES)],
        "positive": random_conditioning(rng, tokens=17 + number),
        "preview_every": 1,
    }
    if cfg != 1.0:
        job["negative"] = random_conditioning(rng, tokens=5)
    return job


@dataclass(frozen=True)
class Planned:
    """A job of the plan, and the fault that is to hit it after a step, if any."""

    job_id: str
    recipe: int
    steps: int
    fault: Fault | None = None
    at_step: int = 0
    seed: int = 0


def plan(
    seed: int, *, jobs: int, faults: int, kinds: Sequence[Fault], steps: int
) -> tuple[list[Planned], list[Planned]]:
    """Jobs that are hit, in order, and jobs that go along beside them; the same for a seed.

    Every kind of fault comes about equally often.
    """
    rng = random.Random(seed)
    drawn = [kinds[i % len(kinds)] for i in range(faults)]
    rng.shuffle(drawn)
    hit = []
    for i, fault in enumerate(drawn):
        number = rng.randrange(RECIPES)
        last = recipe(number, steps)["steps"] - 2
        hit.append(
            Planned(
                f"hit-{i}", number, steps, fault, rng.randint(1, last * 2 // 3), rng.getrandbits(32)
            )
        )
    beside = [
        Planned(f"beside-{i}", rng.randrange(RECIPES), steps) for i in range(max(jobs - faults, 0))
    ]
    return hit, beside
