"""Which sigmas a job visits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.errors import InvalidRequest
from ditmesh.sampling import SCHEDULERS, Flow, job_sigmas, scheduled_sigmas
from tests.sampling.golden_cases import GOLDEN

COMFYUI = json.loads((GOLDEN / "sigmas.json").read_text())
FLOWS = {"flux": Flow.flux(1.15), "sd3": Flow.discrete(3.0)}
# ComfyUI gives NaN for one step of kl_optimal.
SCHEDULES = sorted(name for name in COMFYUI if not name.endswith("kl_optimal/1"))

FLUX = Flow.flux()
schedulers = st.sampled_from(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_comfyuis_to_the_bit(name: str) -> None:
    """Every schedule and step count of both processes, bit for bit."""
    family, scheduler, steps = name.split("/")
    sigmas = scheduled_sigmas(FLOWS[family], scheduler, int(steps))
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, torch.tensor(COMFYUI[name]))


def test_all_of_comfyuis_schedules_are_there() -> None:
    """No scheduler of ComfyUI is missing, and none has another name."""
    assert {name.split("/")[1] for name in COMFYUI} == set(SCHEDULERS)


@given(schedulers, st.integers(2, 200), st.sampled_from(list(FLOWS.values())))
def test_schedules_descend_to_zero(scheduler: str, steps: int, flow: Flow) -> None:
    """At most at sigma 1, strictly down, last sigma 0: what every sampler relies on."""
    sigmas = scheduled_sigmas(flow, scheduler, steps)
    assert sigmas[0] <= 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if scheduler not in ("ddim_uniform", "beta"):
        assert len(sigmas) == steps + 1


@given(schedulers, st.integers(1, 60), st.floats(0.05, 0.9999))
def test_denoise_takes_the_end_of_a_longer_schedule(
    scheduler: str, steps: int, denoise: float
) -> None:
    """`denoise` d: the last `steps + 1` sigmas of int(steps / d)."""
    whole = scheduled_sigmas(FLUX, scheduler, max(int(steps / denoise), 2))
    if int(steps / denoise) < 2:
        return
    sigmas = job_sigmas(FLUX, sampler="euler", scheduler=scheduler, steps=steps, denoise=denoise)
    assert torch.equal(sigmas, whole[-(steps + 1) :])


def test_denoise_is_whole_just_below_one_and_nothing_at_zero() -> None:
    """Above 0.9999 nothing is cut; at 0 there is nothing to do."""
    arguments: dict[str, Any] = {"sampler": "euler", "scheduler": "simple", "steps": 8}
    whole = job_sigmas(FLUX, **arguments)
    assert torch.equal(job_sigmas(FLUX, **arguments, denoise=0.99991), whole)
    assert len(job_sigmas(FLUX, **arguments, denoise=0.0)) == 0


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"])
def test_some_samplers_drop_the_sigma_before_the_last(sampler: str) -> None:
    """One step more is planned and the tiny one before the end left out; also below denoise 1."""
    longer = scheduled_sigmas(FLUX, "karras", 9)
    expected = torch.cat([longer[:-2], longer[-1:]])
    sigmas = job_sigmas(FLUX, sampler=sampler, scheduler="karras", steps=8)
    assert torch.equal(sigmas, expected)

    longer = scheduled_sigmas(FLUX, "karras", 17)
    expected = torch.cat([longer[:-2], longer[-1:]])[-9:]
    sigmas = job_sigmas(FLUX, sampler=sampler, scheduler="karras", steps=8, denoise=0.5)
    assert torch.equal(sigmas, expected)


@given(st.integers(0, 12), st.integers(0, 12), st.booleans())
def test_start_and_end_step_slice_the_schedule(start: int, end: int, full: bool) -> None:
    """KSampler (Advanced): steps [start, end); an end cut short goes to 0 only when told to."""
    whole = scheduled_sigmas(FLUX, "simple", 8)
    sigmas = job_sigmas(
        FLUX,
        sampler="euler",
        scheduler="simple",
        steps=8,
        start_step=start,
        end_step=end,
        force_full_denoise=full,
    )
    if start >= min(end, 8):
        assert len(sigmas) == 0
        return
    assert torch.equal(sigmas[:-1], whole[start : min(end, 8)])
    assert sigmas[-1] == (0 if full else whole[min(end, 8)])


def test_slicing_leaves_the_schedule_alone() -> None:
    """Setting the last sigma to 0 writes to no shared table."""
    before = scheduled_sigmas(FLUX, "ddim_uniform", 8).clone()
    job_sigmas(
        FLUX,
        sampler="euler",
        scheduler="ddim_uniform",
        steps=8,
        end_step=3,
        force_full_denoise=True,
    )
    assert torch.equal(scheduled_sigmas(FLUX, "ddim_uniform", 8), before)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("scheduler", {"scheduler": "magic"}),
        ("steps", {"steps": 0}),
        ("steps", {"steps": -3}),
        ("steps", {"steps": 10_001}),
        ("steps", {"scheduler": "kl_optimal", "steps": 1}),
        ("denoise", {"denoise": -0.1}),
        ("denoise", {"denoise": 1.5}),
        ("denoise", {"denoise": float("nan")}),
        ("denoise", {"denoise": 1e-9}),
        ("start_step", {"start_step": -1}),
        ("end_step", {"end_step": -1}),
    ],
)
def test_values_out_of_range_are_refused(field: str, arguments: dict[str, Any]) -> None:
    """The error names the field, and nothing is allocated for it."""
    job: dict[str, Any] = {"sampler": "euler", "scheduler": "simple", "steps": 8, **arguments}
    with pytest.raises(InvalidRequest) as error:
        job_sigmas(FLUX, **job)
    assert error.value.field == field
