"""The pack in a real ComfyUI, among its other nodes: custom samplers, guiders, inpainting, LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .comfyui import ComfyUI, Prompt
from .prompts import KSAMPLER, Compared, node, sampling, write_lora

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]


def test_custom_samplers_guiders_and_shifts_work(comfyui: ComfyUI) -> None:
    """SamplerCustomAdvanced with a guider on a remote MODEL whose shift a node has changed."""
    prompts = []
    for model in ("remote", "local"):
        prompt = sampling("KSampler", model)
        shift = {"max_shift": 1.4, "base_shift": 0.6, "width": 1024, "height": 512}
        prompt["shifted"] = node("ModelSamplingFlux", model=["model", 0], **shift)
        prompt["guider"] = node(
            "CFGGuider",
            model=["shifted", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            cfg=2.5,
        )
        prompt["noise"] = node("RandomNoise", noise_seed=9)
        prompt["which"] = node("KSamplerSelect", sampler_name="res_multistep")
        schedule = {"scheduler": "beta", "steps": 6, "denoise": 1.0}
        prompt["sigmas"] = node("BasicScheduler", model=["shifted", 0], **schedule)
        prompt["sample"] = node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["which", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        )
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1])
    assert made.difference("ours") <= made.tolerance


def test_inpainting_nodes_work(comfyui: ComfyUI) -> None:
    """DifferentialDiffusion moves the mask at every step, so ComfyUI keeps the loop."""
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), ("KSampler", "remote"), KSAMPLER):
        prompt = sampling(kind, model, denoise=0.8)
        prompt["drawn"] = node("TestRandomLatent", seed=3, batch=1, height=16, width=16)
        prompt["mask"] = node("SolidMask", value=0.4, width=128, height=128)
        prompt["latent"] = node("SetLatentNoiseMask", samples=["drawn", 0], mask=["mask", 0])
        prompt["moved"] = node("DifferentialDiffusion", model=["model", 0])
        prompt["sample"]["inputs"]["model"] = ["moved", 0]
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], stock=prompts[1], theirs=prompts[2])
    assert "denoise_mask_function" in made.report("ours")["reason"]
    assert made.difference("ours") <= made.tolerance
    assert made.difference("stock") <= made.tolerance


def test_a_cache_around_the_transformer_works(comfyui: ComfyUI) -> None:
    """It keeps the cluster from being called where little changes."""
    if "EasyCache" not in comfyui.object_info():
        pytest.skip("this ComfyUI does not have the node yet")
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), ("KSampler", "remote"), KSAMPLER):
        prompt = sampling(kind, model, steps=12)
        options = {"reuse_threshold": 0.8, "start_percent": 0.1, "end_percent": 0.95}
        prompt["cached"] = node("EasyCache", model=["model", 0], verbose=False, **options)
        prompt["sample"]["inputs"]["model"] = ["cached", 0]
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], stock=prompts[1], theirs=prompts[2])
    assert 0 < made.report("ours")["calls"] < 12
    assert made.difference("ours") <= made.tolerance
    assert made.difference("stock") <= made.tolerance


@pytest.mark.parametrize("kind", ["KSampler", "XDiTKSampler"])
def test_a_stock_lora_gives_the_same_picture(comfyui: ComfyUI, kind: str) -> None:
    """Merged on the ranks, it gives what ComfyUI gives that merges it itself."""
    lora(comfyui, "tiny.safetensors")
    prompts: list[dict[str, Any]] = []
    for sampler, model in ((kind, "remote"), KSAMPLER, KSAMPLER):
        prompt = sampling(sampler, model)
        inputs = {"lora_name": "tiny.safetensors", "strength_model": 0.8}
        prompt["patched"] = node("LoraLoaderModelOnly", model=["model", 0], **inputs)
        prompt["sample"]["inputs"]["model"] = ["patched", 0]
        prompts.append(prompt)
    prompts[2]["sample"]["inputs"]["model"] = ["model", 0]
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1], without=prompts[2])
    assert made.difference("ours") <= made.tolerance
    assert made.difference("without") > 100 * made.tolerance


def test_a_lora_on_a_recognised_model_gives_the_same_picture(comfyui: ComfyUI) -> None:
    """Whole and step by step, also when ComfyUI has merged it into its own weights before."""
    lora(comfyui, "tiny.safetensors")

    def patched(kind: str, sampler: str) -> Prompt:
        prompt = sampling(kind, "local", sampler=sampler)
        inputs = {"lora_name": "tiny.safetensors", "strength_model": -0.5}
        prompt["patched"] = node("LoraLoaderModelOnly", model=["model", 0], **inputs)
        prompt["sample"]["inputs"]["model"] = ["patched", 0]
        return prompt

    for sampler, how in (("euler", "cluster"), ("gradient_estimation", "steps")):
        made = Compared(
            comfyui, theirs=patched("KSampler", sampler), ours=patched("XDiTKSampler", sampler)
        )
        assert made.report("ours")["sampled_by"] == how
        assert made.difference("ours") <= made.tolerance


def lora(comfyui: ComfyUI, name: str) -> Path:
    path = comfyui.folder / "models" / "loras" / name
    if not path.exists():
        write_lora(path, hidden=256)
    return path
