"""Noise schedules: which sigmas a job visits.

`scheduled_sigmas` is the bare schedule; `job_sigmas` applies what KSampler and
KSampler (Advanced) of ComfyUI do with it: partial denoising, start and end
step, and the step that some samplers drop. All results are fp32 CPU tensors
that descend. Sums over the schedule are done on fp32 tensors or Python floats
exactly where ComfyUI does so, because a sigma that differs in its last bit
moves every picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest
from ditmesh.sampling.process import NoiseProcess

MAX_STEPS = 10_000
"""Most steps of a job, as ComfyUI's own samplers allow."""

MAX_SCHEDULE = 1_000_000
"""Most steps of a schedule of which a job with a small `denoise` walks only the end."""

_DROPS_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})


def scheduled_sigmas(process: NoiseProcess, scheduler: str, steps: int) -> Tensor:
    """Sigmas of a named schedule, fp32 CPU, normally [steps + 1] and ending at 0.

    `ddim_uniform` may give one or more steps more than asked, and `beta` fewer
    when steps are many: both walk the process's table in whole strides.

    Raises:
        InvalidRequest: unknown scheduler, or a step count it cannot serve.
    """
    schedule = _SCHEDULES.get(scheduler)
    if schedule is None:
        raise InvalidRequest(
            f"unknown scheduler {scheduler!r}; there are {', '.join(SCHEDULERS)}", field="scheduler"
        )
    if not 1 <= steps <= MAX_SCHEDULE:
        raise InvalidRequest(f"steps is {steps}; it must be 1 to {MAX_SCHEDULE}", field="steps")
    return schedule(process, steps)


def job_sigmas(
    process: NoiseProcess,
    *,
    sampler: str,
    scheduler: str,
    steps: int,
    denoise: float = 1.0,
    start_step: int | None = None,
    end_step: int | None = None,
    force_full_denoise: bool = False,
) -> Tensor:
    """Sigmas [n + 1] of a job, with the meaning these arguments have in ComfyUI's KSamplers.

    `denoise` below 1 takes the last `steps + 1` sigmas of a schedule of
    `steps / denoise`. `start_step` and `end_step` slice what is left;
    `force_full_denoise` sets the last sigma of a schedule cut short by
    `end_step` to 0. An empty tensor means that there is nothing to do: the
    latent is returned as it came.

    Raises:
        InvalidRequest: a value out of range, or an unknown scheduler.
    """
    _check_window(steps, denoise, start_step, end_step)
    if denoise <= 0.0:
        return torch.empty(0)
    if denoise > 0.9999:
        sigmas = _without_penultimate(process, sampler, scheduler, steps)
    else:
        whole = _without_penultimate(process, sampler, scheduler, int(steps / denoise))
        sigmas = whole[-(steps + 1) :]
    if end_step is not None and end_step < len(sigmas) - 1:
        sigmas = sigmas[: end_step + 1].clone()
        if force_full_denoise:
            sigmas[-1] = 0.0
    sigmas = sigmas[start_step or 0 :]
    return sigmas if len(sigmas) > 1 else torch.empty(0)


def _check_window(steps: int, denoise: float, start_step: int | None, end_step: int | None) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(f"steps is {steps}; it must be 1 to {MAX_STEPS}", field="steps")
    if not 0.0 <= denoise <= 1.0:
        raise InvalidRequest(f"denoise is {denoise}; it must be 0 to 1", field="denoise")
    if denoise > 0.0 and steps / denoise >= MAX_SCHEDULE:
        raise InvalidRequest(
            f"denoise is {denoise}, too small for {steps} steps; it must be 0 or at least "
            f"{steps / MAX_SCHEDULE:g}",
            field="denoise",
        )
    for field, value in (("start_step", start_step), ("end_step", end_step)):
        if value is not None and value < 0:
            raise InvalidRequest(f"{field} is {value}; it must not be negative", field=field)


def _without_penultimate(process: NoiseProcess, sampler: str, scheduler: str, steps: int) -> Tensor:
    """The schedule; for samplers that stumble over a tiny last step, without that step."""
    if sampler not in _DROPS_PENULTIMATE:
        return scheduled_sigmas(process, scheduler, steps)
    sigmas = scheduled_sigmas(process, scheduler, steps + 1)
    return torch.cat([sigmas[:-2], sigmas[-1:]])


def _simple(process: NoiseProcess, steps: int) -> Tensor:
    """Even strides through the table, from its noisy end."""
    table = process.table
    stride = len(table) / steps
    picked = [-(1 + int(k * stride)) for k in range(steps)]
    return torch.cat([table[picked], table.new_zeros(1)])


def _timesteps(process: NoiseProcess, steps: int, *, sgm: bool) -> Tensor:
    """Even steps in time between the table's ends; `sgm` leaves the low end out."""
    first, last = process.timestep(process.sigma_max), process.timestep(process.sigma_min)
    ends_at_zero = math.isclose(float(process.sigma(last)), 0.0, abs_tol=1e-5)
    if sgm:
        times = torch.linspace(first.item(), last.item(), steps + 1)[:-1]
    else:
        times = torch.linspace(first.item(), last.item(), steps + 1 if ends_at_zero else steps)
    sigmas = process.sigma(times)
    if ends_at_zero and not sgm:
        return sigmas
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _normal(process: NoiseProcess, steps: int) -> Tensor:
    return _timesteps(process, steps, sgm=False)


def _sgm_uniform(process: NoiseProcess, steps: int) -> Tensor:
    return _timesteps(process, steps, sgm=True)


def _ddim_uniform(process: NoiseProcess, steps: int) -> Tensor:
    """Even strides through the table, from its clean end; the table's last rarely is hit."""
    table = process.table
    starts_at_zero = math.isclose(table[1].item(), 0.0, abs_tol=1e-5)
    stride = max(len(table) // (steps + 1 if starts_at_zero else steps), 1)
    picked = table[1::stride].flip(0)
    return picked if starts_at_zero else torch.cat([picked, table.new_zeros(1)])


def _karras(process: NoiseProcess, steps: int) -> Tensor:
    """Karras et al. 2022 (arXiv:2206.00364), eq. 5 with rho 7."""
    rho = 7.0
    low = process.sigma_min.item() ** (1 / rho)
    high = process.sigma_max.item() ** (1 / rho)
    sigmas = (high + torch.linspace(0, 1, steps) * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _exponential(process: NoiseProcess, steps: int) -> Tensor:
    """Even steps in log sigma."""
    low, high = math.log(process.sigma_min.item()), math.log(process.sigma_max.item())
    sigmas = torch.linspace(high, low, steps).exp()
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _beta(process: NoiseProcess, steps: int) -> Tensor:
    """Quantiles of Beta(0.6, 0.6), dense at both ends (arXiv:2407.12173)."""
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    indices = np.rint(quantiles * (len(process.table) - 1)).astype(np.int64)
    distinct = indices[np.concatenate([[True], indices[1:] != indices[:-1]])]
    table = process.table
    return torch.cat([table[torch.from_numpy(distinct)], table.new_zeros(1)])


def _linear_quadratic(process: NoiseProcess, steps: int) -> Tensor:
    """Half the steps linear down to 1 - 0.025, the other half quadratic (Genmo's Mochi 1)."""
    if steps == 1:
        return torch.tensor([1.0, 0.0]) * process.sigma_max
    threshold, linear = 0.025, steps // 2
    bend = linear - threshold * steps
    square = bend / (linear * (steps - linear) ** 2)
    slope = threshold / linear - 2 * bend / (steps - linear) ** 2
    offset = square * linear**2
    progress = [k * threshold / linear for k in range(linear)]
    progress += [square * k**2 + slope * k + offset for k in range(linear, steps)]
    return torch.tensor([1.0 - p for p in [*progress, 1.0]]) * process.sigma_max


def _kl_optimal(process: NoiseProcess, steps: int) -> Tensor:
    """Even steps in arctan(sigma), as in Align Your Steps (arXiv:2404.14507)."""
    if steps == 1:
        raise InvalidRequest("kl_optimal needs at least 2 steps", field="steps")
    low, high = math.atan(process.sigma_min.item()), math.atan(process.sigma_max.item())
    share = torch.arange(steps, dtype=torch.float32) / (steps - 1)
    sigmas = (share * low + (1 - share) * high).tan()
    return torch.cat([sigmas, sigmas.new_zeros(1)])


_SCHEDULES: Mapping[str, Callable[[NoiseProcess, int], Tensor]] = MappingProxyType(
    {
        "simple": _simple,
        "sgm_uniform": _sgm_uniform,
        "karras": _karras,
        "exponential": _exponential,
        "ddim_uniform": _ddim_uniform,
        "beta": _beta,
        "normal": _normal,
        "linear_quadratic": _linear_quadratic,
        "kl_optimal": _kl_optimal,
    }
)

SCHEDULERS: tuple[str, ...] = tuple(_SCHEDULES)
"""Names of the schedules, in ComfyUI's order."""
