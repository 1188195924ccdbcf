"""From a job's sampler and sigmas to the plan that its steps follow."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest
from ditmesh.sampling.noise import check_seed
from ditmesh.sampling.process import NoiseProcess
from ditmesh.sampling.samplers import SAMPLERS
from ditmesh.sampling.solver import Plan

__all__ = ["Plan", "check_plan", "make_plan"]


def make_plan(sampler: str, sigmas: Tensor, process: NoiseProcess, *, seed: int) -> Plan:
    """The plan of a job over `sigmas` [n + 1], strictly descending and at least 0.

    Sigmas come from `job_sigmas` or from the client. Empty sigmas make a plan
    without steps. `seed` (0 to 2^64 - 1) is that of the noise drawn on the way.

    Raises:
        InvalidRequest: as `check_plan`.
    """
    check_plan(sampler, sigmas, process, seed=seed)
    chosen = SAMPLERS[sampler]
    sigmas = sigmas.detach().to("cpu", torch.float32)
    grid = chosen.grid(sigmas, process)
    return Plan(
        sampler=sampler,
        sigmas=sigmas,
        process=process,
        seed=seed,
        grid=grid,
        coefficients=chosen.coefficients(grid, process) if len(grid) else (),
        revision=chosen.revision,
    )


def check_plan(sampler: str, sigmas: Tensor, process: NoiseProcess, *, seed: int) -> None:
    """Whether `make_plan` would take these, without computing coefficients.

    Raises:
        InvalidRequest: unknown sampler, a seed out of range, or sigmas that are
            not finite, not descending, outside the process's range or too few.
    """
    chosen = SAMPLERS.get(sampler)
    if chosen is None:
        raise InvalidRequest(
            f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}", field="sampler"
        )
    check_seed(seed)
    _check_sigmas(sigmas.detach().to("cpu", torch.float32), process)
    if 0 < len(sigmas) <= chosen.min_steps:
        raise InvalidRequest(
            f"{sampler} needs at least {chosen.min_steps} steps; this job has {len(sigmas) - 1}",
            field="steps",
        )


def _check_sigmas(sigmas: Tensor, process: NoiseProcess) -> None:
    if sigmas.ndim != 1:
        raise InvalidRequest(
            f"sigmas have shape {list(sigmas.shape)}; they must be one-dimensional", field="sigmas"
        )
    # As numbers: a tensor operation on a few of them takes longer than a look at each.
    levels: list[float] = sigmas.tolist()
    if not levels:
        return
    if len(levels) == 1:
        raise InvalidRequest("one sigma spans no step; give none, or at least 2", field="sigmas")
    if not all(map(math.isfinite, levels)):
        raise InvalidRequest("sigmas must be finite", field="sigmas")
    if levels[-1] < 0:
        raise InvalidRequest("sigmas must not be negative", field="sigmas")
    if process.is_flow and levels[0] > 1:
        raise InvalidRequest(
            f"the first sigma is {levels[0]:g}; those of a flow model end at 1",
            field="sigmas",
        )
    for at, (level, following) in enumerate(itertools.pairwise(levels)):
        if following >= level:
            raise InvalidRequest(
                f"sigmas must descend, but number {at} is {level:g} and the next {following:g}",
                field="sigmas",
            )
