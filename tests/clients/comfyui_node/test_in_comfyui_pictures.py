"""The pack in a real, unmodified ComfyUI: the same pictures as ComfyUI's own nodes."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import Cluster

from .comfyui import ComfyUI
from .prompts import KSAMPLER, Compared, node, sampling

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]

SCHEDULERS = (
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform"),
    *("beta", "normal", "linear_quadratic", "kl_optimal"),
)
SAMPLERS = (
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2"),
    *("dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral"),
    *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp"),
    *("dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
    *("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v", "deis"),
    *("res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp"),
    *("er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece"),
    *("ddim", "uni_pc", "uni_pc_bh2"),
)
ADDED = frozenset(("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "sa_solver", "sa_solver_pece"))
"""Samplers that the oldest supported ComfyUI lacks."""


def offered(comfyui: ComfyUI, sampler: str) -> str:
    """That sampler; skips the test where this ComfyUI does not have it."""
    if sampler in ADDED and sampler not in choices(comfyui, "sampler_name"):
        pytest.skip("this ComfyUI does not have the sampler yet")
    return sampler


def choices(comfyui: ComfyUI, name: str) -> list[str]:
    found: list[str] = comfyui.object_info()["KSampler"]["input"]["required"][name][0]
    return found


def test_no_sampler_or_schedule_is_left_out(comfyui: ComfyUI) -> None:
    """What ComfyUI offers is what our nodes offer and these tests try."""
    samplers = choices(comfyui, "sampler_name")
    assert set(SAMPLERS) - ADDED <= set(samplers) <= set(SAMPLERS)
    assert set(choices(comfyui, "scheduler")) == set(SCHEDULERS)
    ours = comfyui.object_info()["XDiTKSampler"]["input"]["required"]
    assert ours["sampler_name"][0] == samplers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_remote_model_gives_the_same_bits(comfyui: ComfyUI, sampler: str) -> None:
    """On every schedule, as long as the transformer computes the same: nothing of the picture is
    lost or changed between ComfyUI's sampler and the cluster.
    """
    shape = sampling("KSampler", "local", sampler=offered(comfyui, sampler), steps=4, cfg=2.0)
    prompt = {name: shape[name] for name in ("positive", "negative")}
    prompt["latent"] = node("TestRandomLatent", seed=3, batch=1, height=8, width=8)
    prompt["near"] = shape["model"]
    prompt["far"] = node("TestLoopback", model=["near", 0])
    for scheduler in SCHEDULERS:
        for model in ("near", "far"):
            name = f"{scheduler}.{model}"
            inputs = {**shape["sample"]["inputs"], "model": [model, 0], "scheduler": scheduler}
            prompt[f"{name}.sample"] = node("KSampler", **inputs)
            prompt[name] = node("SaveLatent", samples=[f"{name}.sample", 0], filename_prefix=name)
    outputs = comfyui.run(prompt)
    for scheduler in SCHEDULERS:
        near, far = (comfyui.latent(outputs, f"{scheduler}.{model}") for model in ("near", "far"))
        assert near.tobytes() == far.tobytes(), scheduler


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_ksamplers_picture(comfyui: ComfyUI, sampler: str) -> None:
    """As a whole job or step by step, and through ComfyUI's own node on a remote MODEL."""
    scheduler = SCHEDULERS[SAMPLERS.index(sampler) % len(SCHEDULERS)]
    if "heun" in sampler and "sde" not in sampler:
        scheduler = "simple"  # others end in steps so small that it divides by almost nothing
    options = {"sampler": offered(comfyui, sampler), "scheduler": scheduler, "cfg": 2.0}
    made = Compared(
        comfyui,
        ours=sampling("XDiTKSampler", "remote", **options),
        stock=sampling("KSampler", "remote", **options),
        theirs=sampling("KSampler", "local", **options),
    )
    assert made.report("ours")["sampled_by"] in ("cluster", "steps")
    assert made.difference("ours") <= made.tolerance
    assert made.difference("stock") <= made.tolerance


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_gives_ksamplers_picture(comfyui: ComfyUI, scheduler: str) -> None:
    """As a whole job from part of the noise, on an ordinary MODEL that the cluster recognises."""
    options = {"sampler": "dpmpp_2m", "scheduler": scheduler, "denoise": 0.7}
    made = Compared(
        comfyui,
        ours=sampling("XDiTKSampler", "local", **options),
        theirs=sampling("KSampler", "local", **options),
    )
    assert made.report("ours")["sampled_by"] == "cluster"
    assert made.report("ours")["segments"][0]["ranks"] == 2
    assert made.difference("ours") <= made.tolerance


@pytest.mark.parametrize("scheduler", ["karras", "simple"])
def test_schnell_has_comfyuis_own_schedule(
    comfyui: ComfyUI, cluster: Cluster, scheduler: str
) -> None:
    """It is not shifted, and its smallest levels are others than those of Flux.1-dev."""
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), ("KSampler", "remote"), ("KSampler", "local")):
        prompt = sampling(kind, model, scheduler=scheduler, steps=6)
        if model == "remote":
            prompt["model"] = node("XDiTRemoteModel", model_name="tiny-schnell")
        else:
            path = cluster.folder / "local" / "tiny-schnell.safetensors"
            prompt["model"] = node("TestTinyFlux", path=str(path), dtype="float32")
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], stock=prompts[1], theirs=prompts[2])
    assert made.report("ours")["sampled_by"] == "cluster"
    assert made.difference("ours") <= made.tolerance
    assert made.difference("stock") <= made.tolerance


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral"])
@pytest.mark.parametrize("steps", [(0, 4, "enable"), (3, 10000, "disable"), (2, 6, "disable")])
@pytest.mark.parametrize("noise", ["enable", "disable"])
def test_advanced_options_give_the_same_picture(
    comfyui: ComfyUI, steps: tuple[int, int, str], noise: str, sampler: str
) -> None:
    """Start and end step, leftover noise, and no noise."""
    prompts = []
    for kind, model in (("XDiTKSamplerAdvanced", "remote"), ("KSamplerAdvanced", "local")):
        prompt = sampling(kind, model, sampler=sampler)
        inputs = prompt["sample"]["inputs"]
        inputs["noise_seed"] = inputs.pop("seed")
        del inputs["denoise"]
        inputs["start_at_step"], inputs["end_at_step"], inputs["return_with_leftover_noise"] = steps
        inputs["add_noise"] = noise
        prompt["latent"] = node("TestRandomLatent", seed=3, batch=1, height=16, width=16)
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1])
    assert made.report("ours")["sampled_by"] == "cluster"
    assert made.difference("ours") <= made.tolerance


@pytest.mark.parametrize("sampler", ["euler", "gradient_estimation"])
def test_masks_and_batches_give_the_same_picture(comfyui: ComfyUI, sampler: str) -> None:
    """A mask that is soft, and two of three pictures of a batch, with their own noise."""
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), ("KSampler", "local")):
        prompt = sampling(kind, model, sampler=sampler, denoise=0.8)
        prompt["drawn"] = node("TestRandomLatent", seed=3, batch=3, height=16, width=24)
        prompt["two"] = node("LatentFromBatch", samples=["drawn", 0], batch_index=1, length=2)
        prompt["mask"] = node("SolidMask", value=0.6, width=64, height=64)
        prompt["latent"] = node("SetLatentNoiseMask", samples=["two", 0], mask=["mask", 0])
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1])
    assert made.report("ours")["sampled_by"] == ("cluster" if sampler == "euler" else "steps")
    assert made.difference("ours") <= made.tolerance


def test_the_largest_seed_and_no_step_at_all(comfyui: ComfyUI) -> None:
    """The widgets' ends: all 64 bits of a seed, and a denoise that leaves nothing to do."""
    options = {"sampler": "dpmpp_sde", "seed": 2**64 - 1, "steps": 4}
    ours, theirs = sampling("XDiTKSampler", "remote", **options), sampling(*KSAMPLER, **options)
    made = Compared(comfyui, ours=ours, theirs=theirs)
    assert made.report("ours")["sampled_by"] == "cluster"
    assert made.difference("ours") <= made.tolerance
    prompts = [sampling(*which, denoise=0.0) for which in (("XDiTKSampler", "remote"), KSAMPLER)]
    for prompt in prompts:
        prompt["latent"] = node("TestRandomLatent", seed=3, batch=1, height=16, width=16)
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1])
    assert made.report("ours")["calls"] == 0
    assert made.difference("ours") == 0.0


def test_areas_and_times_of_prompts_go_step_by_step(comfyui: ComfyUI) -> None:
    """Several prompts, one for a part of the picture and one for a part of the steps."""
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), ("XDiTKSampler", "local"), KSAMPLER):
        prompt = sampling(kind, model, cfg=2.0)
        area = {"width": 64, "height": 64, "x": 32, "y": 0, "strength": 0.8}
        reach = {"start": 0.2, "end": 0.7}
        prompt["area"] = node("ConditioningSetArea", conditioning=["positive", 0], **area)
        prompt["times"] = node(
            "ConditioningSetTimestepRange", conditioning=["negative", 0], **reach
        )
        parts = {"conditioning_1": ["area", 0], "conditioning_2": ["times", 0]}
        prompt["both"] = node("ConditioningCombine", **parts)
        whole = {"conditioning_1": ["both", 0], "conditioning_2": ["negative", 0]}
        prompt["all"] = node("ConditioningCombine", **whole)
        prompt["sample"]["inputs"]["positive"] = ["all", 0]
        prompts.append(prompt)
    made = Compared(comfyui, remote=prompts[0], twin=prompts[1], theirs=prompts[2])
    for name in ("remote", "twin"):
        assert made.report(name)["sampled_by"] == "steps"
        assert "conditioning has 3 parts" in made.report(name)["reason"]
        assert made.difference(name) <= made.tolerance


def test_odd_sides_and_bf16_give_the_same_picture(comfyui: ComfyUI) -> None:
    """Padded as ComfyUI pads; an ordinary MODEL in bf16 is recognised as well."""
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), KSAMPLER):
        prompt = sampling(kind, model)
        prompt["latent"] = node("TestRandomLatent", seed=3, batch=1, height=15, width=18)
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1])
    assert "padded" in made.report("ours")["reason"]
    assert made.difference("ours") <= made.tolerance
    prompt = sampling("XDiTKSampler", "local")
    prompt["model"]["inputs"]["dtype"] = "bfloat16"
    made = Compared(comfyui, ours=prompt, theirs=sampling(*KSAMPLER))
    assert made.report("ours")["sampled_by"] == "cluster"
    assert made.difference("ours") <= made.tolerance  # the cluster computes in full precision
