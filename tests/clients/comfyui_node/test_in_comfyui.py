"""The pack in a real, unmodified ComfyUI: the same pictures as ComfyUI's own nodes, and what an
artist meets when things go wrong.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.e2e.cluster import Cluster

from .comfyui import PACK, ComfyUI, Prompt, merged, node, sampling
from .conftest import DEMO
from .workflow_api import to_prompt

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]

EXACT = 1e-4
"""At 8 steps, for latents up to GOLDEN_PEAK; a random model that goes beyond magnifies rounding."""
GOLDEN_PEAK = 14.0
SCHEDULERS = (
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform"),
    *("beta", "normal", "linear_quadratic", "kl_optimal"),
)
SAMPLERS = (
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2"),
    *("dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral"),
    *("dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp"),
    *("dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "lcm", "ipndm"),
    *("ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("gradient_estimation", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece"),
    *("ddim", "uni_pc", "uni_pc_bh2"),
)


class Compared:
    """Prompts that ran together, the one called `theirs` being ComfyUI's own way."""

    def __init__(self, comfyui: ComfyUI, **prompts: Prompt) -> None:
        self._comfyui = comfyui
        self._outputs = comfyui.run(merged(**prompts))
        self._expected = comfyui.latent(self._outputs, "theirs.save")
        self.tolerance = EXACT * max(1.0, float(np.abs(self._expected).max()) / GOLDEN_PEAK)

    def difference(self, name: str) -> float:
        """The largest difference of a latent from ComfyUI's."""
        latent = self._comfyui.latent(self._outputs, f"{name}.save")
        return float(np.abs(latent - self._expected).max())

    def report(self, name: str) -> dict[str, Any]:
        """What our sampler says of who made the picture."""
        (report,) = self._outputs[f"{name}.sample"]["xdit"]
        found: dict[str, Any] = report
        return found


def test_the_pack_loads_in_no_time(comfyui: ComfyUI) -> None:
    """All nodes are there, and ComfyUI starts at most half a second later."""
    info = comfyui.object_info()
    assert {name for name in info if name.startswith("XDiT")} == {
        *("XDiTDispatcher", "XDiTRemoteModel", "XDiTKSampler", "XDiTKSamplerAdvanced"),
        *("XDiTEncodePrompt", "XDiTDecode"),
    }
    (seconds,) = re.findall(r"([\d.]+) seconds: \S+ditmesh", comfyui.log.read_text())
    assert float(seconds) <= 0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_ksamplers_picture(comfyui: ComfyUI, sampler: str) -> None:
    """As a whole job or step by step, and through ComfyUI's own node on a remote MODEL."""
    scheduler = SCHEDULERS[SAMPLERS.index(sampler) % len(SCHEDULERS)]
    if sampler.startswith("heun"):
        scheduler = "simple"  # others end in steps so small that it divides by almost nothing
    options = {"sampler": sampler, "scheduler": scheduler, "cfg": 2.0}
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


@pytest.mark.parametrize("steps", [(0, 4, "enable"), (3, 10000, "disable"), (2, 6, "disable")])
@pytest.mark.parametrize("noise", ["enable", "disable"])
def test_advanced_options_give_the_same_picture(
    comfyui: ComfyUI, steps: tuple[int, int, str], noise: str
) -> None:
    """Start and end step, leftover noise, and no noise."""
    prompts = []
    for kind, model in (("XDiTKSamplerAdvanced", "remote"), ("KSamplerAdvanced", "local")):
        prompt = sampling(kind, model, sampler="dpmpp_2m")
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


def test_masks_and_batches_give_the_same_picture(comfyui: ComfyUI) -> None:
    """A soft mask, three pictures, and one picked out of the batch."""
    prompts = []
    for kind, model in (("XDiTKSampler", "remote"), ("KSampler", "local")):
        prompt = sampling(kind, model, denoise=0.8)
        prompt["drawn"] = node("TestRandomLatent", seed=3, batch=3, height=16, width=24)
        prompt["one"] = node("LatentFromBatch", samples=["drawn", 0], batch_index=1, length=2)
        prompt["mask"] = node("SolidMask", value=0.6, width=64, height=64)
        prompt["latent"] = node("SetLatentNoiseMask", samples=["one", 0], mask=["mask", 0])
        prompts.append(prompt)
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1])
    assert made.report("ours")["sampled_by"] == "cluster"
    assert made.difference("ours") <= made.tolerance


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


@pytest.mark.parametrize("kind", ["KSampler", "XDiTKSampler"])
def test_a_stock_lora_gives_the_same_picture(comfyui: ComfyUI, kind: str) -> None:
    """Merged on the ranks, it gives what ComfyUI gives that merges it itself."""
    write_lora(comfyui.folder / "models" / "loras" / "tiny.safetensors", hidden=256)
    prompts = []
    for sampler, model in ((kind, "remote"), ("KSampler", "local"), ("KSampler", "local")):
        prompt = sampling(sampler, model)
        lora = {"lora_name": "tiny.safetensors", "strength_model": 0.8}
        prompt["patched"] = node("LoraLoaderModelOnly", model=["model", 0], **lora)
        prompt["sample"]["inputs"]["model"] = ["patched", 0]
        prompts.append(prompt)
    prompts[2]["sample"]["inputs"]["model"] = ["model", 0]
    made = Compared(comfyui, ours=prompts[0], theirs=prompts[1], without=prompts[2])
    assert made.difference("ours") <= made.tolerance
    assert made.difference("without") > 100 * made.tolerance


def write_lora(path: Path, hidden: int) -> None:
    """A random LoRA in three of the spellings that files have."""
    random = np.random.default_rng(3)
    shapes = {
        "diffusion_model.double_blocks.0.img_attn.qkv": (3 * hidden, hidden),
        "transformer.transformer_blocks.0.attn.to_q": (hidden, hidden),
        "lora_unet_single_blocks_0_linear2": (hidden, 5 * hidden),
    }
    tensors = {}
    for name, (rows, columns) in shapes.items():
        kohya = name.startswith("lora_unet")
        down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
        for part, shape in ((down, (4, columns)), (up, (rows, 4))):
            values = 0.3 * random.standard_normal(shape)
            tensors[f"{name}.{part}.weight"] = values.astype(np.float32)
    save_file(tensors, path)


def workflow(comfyui: ComfyUI, name: str) -> Prompt:
    """An example workflow as a prompt on the test's cluster."""
    saved = json.loads((PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = to_prompt(saved, comfyui.object_info())
    for entry in prompt.values():
        if entry["class_type"] == "XDiTDispatcher":
            entry["inputs"]["address"] = comfyui.cluster
    return prompt


def pictures(comfyui: ComfyUI, outputs: dict[str, Any]) -> list[Any]:
    """Every picture that a prompt saved."""
    files = [entry for output in outputs.values() for entry in output.get("images", [])]
    return [np.asarray(Image.open(comfyui.file(entry)), np.int16) for entry in files]


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model is not there")
@pytest.mark.parametrize("name", ["text_to_image_demo", "inpaint_demo", "lora_remote_model"])
def test_example_workflows_give_ksamplers_pictures(comfyui: ComfyUI, name: str) -> None:
    """Each runs as it is, and as it is with KSampler in place of our sampler."""
    write_lora(comfyui.folder / "models" / "loras" / "lora.safetensors", hidden=128)
    ours = workflow(comfyui, name)
    theirs = workflow(comfyui, name)
    for entry in theirs.values():
        if entry["class_type"] == "XDiTKSampler":
            entry["class_type"] = "KSampler"
            del entry["inputs"]["xdit_dispatcher"]
    made, expected = pictures(comfyui, comfyui.run(ours)), pictures(comfyui, comfyui.run(theirs))
    assert len(made) == len(expected) > 0
    for a, b in zip(made, expected, strict=True):
        assert a.std() > 10  # never a grey one
        assert np.abs(a - b).max() <= 1


def test_the_flux_workflow_runs_with_a_small_model(comfyui: ComfyUI) -> None:
    """Its loaders and text encoders replaced by small ones, it is sampled by the cluster."""
    prompt = workflow(comfyui, "flux_stock_loaders")
    small = sampling("KSampler", "local")
    replaced = {"UNETLoader": small["model"], "CLIPTextEncode": small["positive"]}
    for key, entry in list(prompt.items()):
        if entry["class_type"] in ("DualCLIPLoader", "VAELoader"):
            del prompt[key]
        elif entry["class_type"] == "EmptySD3LatentImage":
            entry["inputs"].update(width=128, height=128)
        elif entry["class_type"] == "VAEDecode":
            latent = entry["inputs"]["samples"]
            prompt[key] = node("SaveLatent", samples=latent, filename_prefix="flux")
        elif entry["class_type"] == "SaveImage":
            del prompt[key]
        else:
            prompt[key] = replaced.get(entry["class_type"], entry)
    outputs = comfyui.run(prompt)
    (report,) = [output["xdit"][0] for output in outputs.values() if "segments" in str(output)]
    assert report["sampled_by"] == "cluster"


@pytest.mark.parametrize("sampler", ["euler", "gradient_estimation"])
def test_cancel_stops_the_cluster(comfyui: ComfyUI, cluster: Cluster, sampler: str) -> None:
    """A whole job and one step by step: nothing runs on the cluster a moment later."""
    prompt = comfyui.start(sampling("XDiTKSampler", "remote", sampler=sampler, steps=3000))
    cluster.wait(lambda: cluster.snapshot().queue.running > 0, "the job to run")
    comfyui.interrupt()
    started = time.monotonic()
    messages = comfyui.wait(prompt)["status"]["messages"]
    assert messages[-1][0] == "execution_interrupted"
    cluster.wait(lambda: cluster.snapshot().queue.running == 0, "the job to end")
    assert time.monotonic() - started < 5


def test_two_machines_share_a_cluster(comfyui: ComfyUI, cluster: Cluster) -> None:
    """The other's job comes first; then this one's, with the same picture as ever."""
    expected = comfyui.latent(comfyui.run(sampling("KSampler", "local", seed=77)))
    with ComfyUI(comfyui.folder / "other", cluster.address) as other:
        long = other.start(sampling("XDiTKSampler", "remote", steps=150))
        cluster.wait(lambda: cluster.snapshot().queue.running > 0, "the other's job to run")
        outputs = comfyui.run(sampling("XDiTKSampler", "remote", seed=77))
        assert other.wait(long)["status"]["status_str"] == "success"
    assert outputs["sample"]["xdit"][0]["queue_seconds"] > 0.1
    assert float(np.abs(comfyui.latent(outputs) - expected).max()) <= EXACT


def test_a_killed_rank_costs_no_picture(comfyui: ComfyUI, cluster: Cluster) -> None:
    """The job goes on elsewhere; the picture is the same, and the report tells the story."""
    options = {"steps": 60, "seed": 5}
    expected = comfyui.latent(comfyui.run(sampling("KSampler", "local", **options)))
    prompt = comfyui.start(sampling("XDiTKSampler", "remote", **options))
    cluster.wait(lambda: cluster.snapshot().queue.running > 0, "the job to run")
    cluster.kill(1)
    entry = comfyui.wait(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    report = entry["outputs"]["sample"]["xdit"][0]
    assert report["sampled_by"] == "cluster"
    assert len(report["segments"]) > 1
    found = comfyui.latent(entry["outputs"])
    assert float(np.abs(found - expected).max()) <= 20 * EXACT  # 60 steps of a random model
    cluster.wait_for_group()


def test_a_coordinator_that_dies_is_replaced_by_comfyui(tmp_path: Path, comfyui: ComfyUI) -> None:
    """ComfyUI samples with the MODEL's weights, without weights the error is plain, and the
    cluster is used again when it is back.
    """
    with Cluster(tmp_path, ranks=0) as lone:
        options = {"steps": 400, "address": lone.address}
        prompt = comfyui.start(sampling("XDiTKSampler", "local", seed=1, **options))
        lone.wait(lambda: lone.snapshot().queue.running > 0, "the job to run")
        assert lone.coordinator is not None
        lone.coordinator.kill()
        lone.coordinator.wait()
        report = comfyui.wait(prompt)["outputs"]["sample"]["xdit"][0]
        assert report["sampled_by"] == "comfyui"
        assert "coordinator" in report["reason"]
        remote = sampling("XDiTKSampler", "remote", seed=2, address=lone.address)
        assert "no weights here" in comfyui.error(comfyui.start(remote))
        lone.coordinator = lone._start("coordinator", lone._coordinator_command)
        lone.wait_for_group()
        again = comfyui.run(sampling("XDiTKSampler", "local", seed=3, address=lone.address))
        assert again["sample"]["xdit"][0]["sampled_by"] == "cluster"


def test_a_patch_that_cannot_be_remote_is_an_error(comfyui: ComfyUI) -> None:
    """On a MODEL without weights; it names what cannot be done."""
    prompt = sampling("KSampler", "remote", cfg=2.0)
    layers = {"double_layers": "0", "single_layers": "0", "scale": 3.0, "rescaling_scale": 0.0}
    reach = {"start_percent": 0.0, "end_percent": 1.0}
    prompt["patched"] = node("SkipLayerGuidanceDiT", model=["model", 0], **layers, **reach)
    prompt["sample"]["inputs"]["model"] = ["patched", 0]
    assert "a node patches the transformer" in comfyui.error(comfyui.start(prompt))


def test_the_checkout_is_unmodified() -> None:
    """The tests use ComfyUI as it is: nothing of theirs lies in its folder of custom nodes."""
    custom = Path(os.environ["COMFYUI"]) / "custom_nodes"
    assert not (custom / "testing").exists()
