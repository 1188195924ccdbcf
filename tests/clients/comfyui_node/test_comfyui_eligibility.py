"""What may run on a cluster and how: nothing that would change the picture slips through."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.comfyui_node.eligibility import (
    DEVICE_NOISE_SAMPLERS,
    WHOLE_JOB_SAMPLERS,
    flow_shift,
    why_not_remote,
    why_not_whole,
)
from ditmesh.sampling import SAMPLERS

from .fakes import DiscreteSampling, FluxSampling, Patcher, conditioning, request

LATENT = torch.zeros(2, 16, 8, 8)


def refusal(latent: Any = LATENT, on_cpu: bool = True, **changes: Any) -> str:
    return why_not_whole(request(**changes), latent, size_multiple=2, samples_on_cpu=on_cpu)


def test_a_plain_request_is_a_whole_job() -> None:
    """Nothing speaks against KSampler's ordinary inputs."""
    assert refusal() == ""
    assert why_not_remote(request()) == ""


def test_the_samplers_are_those_of_the_cluster() -> None:
    """The list names every sampler that the cluster has, and no other."""
    assert set(SAMPLERS) == WHOLE_JOB_SAMPLERS


@pytest.mark.parametrize("sampler", sorted(WHOLE_JOB_SAMPLERS))
def test_noise_of_this_machines_gpu_stays_here(sampler: str) -> None:
    """Samplers whose noise the GPU's generator draws are whole jobs on a CPU only."""
    assert refusal(sampler_name=sampler) == ""
    refused = refusal(sampler_name=sampler, on_cpu=False)
    assert bool(refused) == (sampler in DEVICE_NOISE_SAMPLERS)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sampler_name": "dpm_adaptive"}, "dpm_adaptive"),
        ({"latent": None, "_latent": torch.zeros(1, 16, 9, 8)}, "padded"),
        ({"_latent": torch.zeros(1, 16, 1, 8, 8)}, "not one batch"),
        ({"_latent": torch.zeros(1, 16, 8, 8, dtype=torch.float16)}, "float16"),
        ({"positive": conditioning() * 2}, "2 parts"),
        ({"positive": conditioning(area=(4, 4, 0, 0))}, "area"),
        ({"positive": conditioning(start_percent=0.5)}, "start_percent"),
        ({"positive": conditioning(guidance=None)}, "guidance off"),
        ({"positive": conditioning(batch=3)}, "each picture"),
        ({"negative": conditioning(area=(4, 4, 0, 0))}, "area"),
        ({"negative": conditioning() * 2, "cfg": 2.0}, "2 parts"),
        ({"model": Patcher(sampling=object())}, "noise schedule"),
        ({"model": Patcher(sampling=DiscreteSampling(3.0, 1000.0))}, "noise schedule"),
        ({"model": Patcher(object_patches={"latent_format": 1})}, "latent_format"),
        ({"model": Patcher(wrappers={"a": {None: [print]}})}, "wrappers"),
        ({"model": Patcher(callbacks={"a": {None: [print]}})}, "callbacks"),
    ],
)
def test_what_a_whole_job_cannot_express_is_refused(changes: dict[str, Any], word: str) -> None:
    """Each such request is refused with a reason that names what it is."""
    latent = changes.pop("_latent", LATENT)
    changes.pop("latent", None)
    assert word in refusal(latent, **changes)


def test_two_negative_prompts_do_not_matter_at_cfg_1() -> None:
    """What is not computed need not be expressed."""
    assert refusal(negative=conditioning() * 2, cfg=1.0) == ""
    assert refusal(negative=[], cfg=1.0) == ""


@given(st.text(min_size=1), st.one_of(st.just(print), st.lists(st.just(print), min_size=1)))
def test_an_unknown_model_option_is_refused(name: str, value: Any) -> None:
    """Whatever functions nodes hang on a MODEL, known or not, keep the sampler in ComfyUI."""
    options = {"transformer_options": {}, name: value}
    assert refusal(model=Patcher(model_options=options))


@given(st.text(min_size=1).filter(lambda key: key not in ("pooled_output", "guidance")))
def test_an_unknown_conditioning_option_is_refused(name: str) -> None:
    """Whatever nodes write into a conditioning, known or not, keeps the sampler in ComfyUI."""
    assert refusal(positive=conditioning(**{name: 0.5}))


@pytest.mark.parametrize(
    "options",
    [
        {"patches": {"double_block": [print]}},
        {"patches_replace": {"dit": {("double_block", 0): print}}},
    ],
)
def test_patches_inside_the_transformer_cannot_be_remote(options: dict[str, Any]) -> None:
    """They are functions, and functions do not travel."""
    model = Patcher(model_options={"transformer_options": options})
    assert "patches inside" in why_not_remote(request(model=model))


@pytest.mark.parametrize(
    "model",
    [
        Patcher(hook_patches={"hook": {"weight": [1]}}),
        Patcher(forced_hooks=SimpleNamespace()),
        Patcher(injections={"node": [print]}),
        Patcher(weight_wrapper_patches={"weight": [print]}),
        Patcher(object_patches={"diffusion_model.img_in": 1}),
    ],
)
def test_other_changes_of_the_transformer_cannot_be_remote(model: Patcher) -> None:
    """Hooks, injected code, wrapped weights and replaced modules stay in ComfyUI."""
    assert why_not_remote(request(model=model))


@pytest.mark.parametrize("key", ["control", "gligen", "hooks", "reference_latents"])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_conditioning_that_reaches_into_the_transformer_cannot_be_remote(
    key: str, side: str
) -> None:
    """On either side, at any cfg."""
    assert why_not_remote(request(**{side: conditioning(**{key: object()})}))


def test_empty_containers_are_no_patches() -> None:
    """ComfyUI leaves empty dicts behind; they mean nothing."""
    options = {"transformer_options": {"patches": {"a": []}, "wrappers": {"b": {None: []}}}}
    model = Patcher(model_options={**options, "sampler_post_cfg_function": []})
    assert why_not_remote(request(model=model)) == ""
    assert refusal(model=model) == ""


@given(st.floats(0.01, 50))
def test_both_spellings_of_a_flow_shift_are_one(factor: float) -> None:
    """A factor is the exponential of Flux's shift."""
    discrete = flow_shift(DiscreteSampling(factor))
    assert discrete is not None
    assert math.exp(discrete) == pytest.approx(factor)
    assert flow_shift(FluxSampling(discrete)) == discrete
