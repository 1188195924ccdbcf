"""The pack in a real ComfyUI when things go wrong: Cancel, dead ranks, a dead coordinator, and what
cannot be done.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.e2e.cluster import Cluster

from .comfyui import ComfyUI
from .listening import Listener, client_id
from .prompts import EXACT, node, report, sampling, write_lora

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("XDiTKSampler", "euler"), ("XDiTKSampler", "gradient_estimation"), ("KSampler", "euler")],
)
def test_cancel_stops_the_cluster(
    comfyui: ComfyUI, cluster: Cluster, kind: str, sampler: str
) -> None:
    """A whole job and both ways step by step: neither side takes many steps more."""
    client, taken = client_id(), 0
    with Listener(comfyui.port, client) as browser:
        prompt = comfyui.start(sampling(kind, "remote", sampler=sampler, steps=3000), client)
        for told in browser.until_idle():
            if told.kind == "progress":
                before, taken = taken, told.data["value"]
                if before < 3 <= taken:
                    comfyui.interrupt()
    messages = comfyui.wait(prompt)["status"]["messages"]
    assert messages[-1][0] == "execution_interrupted", messages[-1]
    assert 3 <= taken < 1000
    cluster.wait(lambda: cluster.snapshot().queue.running == 0, "the job to end")


def test_two_machines_share_a_cluster(comfyui: ComfyUI, cluster: Cluster) -> None:
    """The other's job comes first; then this one's, with the same picture as ever."""
    expected = comfyui.latent(comfyui.run(sampling("KSampler", "local", seed=77)))
    with ComfyUI(comfyui.folder / "other", cluster.address) as other:
        long = other.start(sampling("XDiTKSampler", "remote", steps=150))
        cluster.wait(lambda: cluster.snapshot().queue.running > 0, "the other's job to run")
        outputs = comfyui.run(sampling("XDiTKSampler", "remote", seed=77))
        assert other.wait(long)["status"]["status_str"] == "success"
    assert report(outputs)["queue_seconds"] > 0.1
    assert float(np.abs(comfyui.latent(outputs) - expected).max()) <= EXACT


def test_a_killed_rank_costs_no_picture(comfyui: ComfyUI, cluster: Cluster) -> None:
    """The job goes on elsewhere; the picture is the same, and the report tells the story.

    A thousand steps are to come when the first is told of, and nothing but the signal is between.
    """
    options = {"steps": 1000, "seed": 5}
    expected = comfyui.latent(comfyui.run(sampling("KSampler", "local", **options)))
    pid, client, killed = cluster.ranks()[1], client_id(), False
    with Listener(comfyui.port, client) as browser:
        prompt = comfyui.start(sampling("XDiTKSampler", "remote", **options), client)
        for told_now in browser.until_idle():
            if told_now.kind == "progress" and not killed:
                os.kill(pid, signal.SIGKILL)
                killed = True
    assert killed
    entry = comfyui.wait(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    told = report(entry["outputs"])
    assert told["sampled_by"] == "cluster"
    assert len(told["segments"]) > 1, "it was over before"
    found = comfyui.latent(entry["outputs"])
    assert float(np.abs(found - expected).max()) <= 20 * EXACT  # 1000 steps of a random model
    cluster.wait_for_group()


def test_a_coordinator_that_dies_is_replaced_by_comfyui(tmp_path: Path, comfyui: ComfyUI) -> None:
    """ComfyUI samples with the MODEL's weights, without weights the error is plain, and the
    cluster is used again when it is back.
    """
    with Cluster(tmp_path, ranks=0) as lone:
        where = {"address": lone.address, "reconnect_time": 2.0}
        options: dict[str, Any] = {"steps": 400, "dispatcher": where}
        prompt = comfyui.start(sampling("XDiTKSampler", "local", seed=1, **options))
        lone.wait(lambda: lone.snapshot().queue.running > 0, "the job to run")
        assert lone.coordinator is not None
        lone.coordinator.kill()
        lone.coordinator.wait()
        told = report(comfyui.wait(prompt)["outputs"])
        assert told["sampled_by"] == "comfyui"
        assert "coordinator" in told["reason"]
        stepwise = sampling("XDiTKSampler", "local", sampler="gradient_estimation", **options)
        assert report(comfyui.run(stepwise))["sampled_by"] == "comfyui"
        lone.start_coordinator()
        for model in ("local", "remote"):
            again = comfyui.run(sampling("XDiTKSampler", model, seed=3, dispatcher=where))
            assert report(again)["sampled_by"] == "cluster"
        lone.coordinator.kill()
        lone.coordinator.wait()
        remote = sampling("XDiTKSampler", "remote", seed=2, dispatcher=where)
        assert "no weights here" in comfyui.error(comfyui.start(remote))
        stock = sampling("KSampler", "remote", seed=2, dispatcher=where)
        assert f"cluster at {lone.address} did not" in comfyui.error(comfyui.start(stock))
        lone.start_coordinator()
        for kind in ("XDiTKSampler", "KSampler"):
            comfyui.run(sampling(kind, "remote", seed=2, dispatcher=where))


def test_a_patch_that_cannot_be_remote_is_an_error(comfyui: ComfyUI) -> None:
    """On a MODEL without weights; it names what cannot be done. With weights, ComfyUI does it."""
    layers = {"double_layers": "0", "single_layers": "0", "scale": 3.0, "rescaling_scale": 0.0}
    reach = {"start_percent": 0.0, "end_percent": 1.0}
    for kind, model in (("KSampler", "remote"), ("XDiTKSampler", "remote")):
        prompt = sampling(kind, model, cfg=2.0)
        prompt["patched"] = node("SkipLayerGuidanceDiT", model=["model", 0], **layers, **reach)
        prompt["sample"]["inputs"]["model"] = ["patched", 0]
        assert "a node patches the transformer" in comfyui.error(comfyui.start(prompt))


@pytest.mark.parametrize("kind", ["KSampler", "XDiTKSampler"])
def test_a_lora_that_cannot_be_sent_is_an_error(comfyui: ComfyUI, kind: str) -> None:
    """On a MODEL without weights; it says which weight and why. Nothing is left out in silence."""
    folder = comfyui.folder / "models" / "loras"
    write_lora(folder / "dora.safetensors", hidden=256)
    tensors = load_file(folder / "dora.safetensors")
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors[f"{name}.dora_scale"] = np.ones((3 * 256, 1), np.float32)
    save_file(tensors, folder / "dora.safetensors")
    prompt = sampling(kind, "remote")
    lora = {"lora_name": "dora.safetensors", "strength_model": 0.8}
    prompt["patched"] = node("LoraLoaderModelOnly", model=["model", 0], **lora)
    prompt["sample"]["inputs"]["model"] = ["patched", 0]
    error = comfyui.error(comfyui.start(prompt))
    assert "double_blocks.0.img_attn.qkv" in error
    assert "DoRA" in error


def test_a_hook_lora_is_an_error_without_weights(comfyui: ComfyUI) -> None:
    """Hooks change weights while sampling, which no cluster does."""
    write_lora(comfyui.folder / "models" / "loras" / "tiny.safetensors", hidden=256)
    for kind in ("KSampler", "XDiTKSampler"):
        prompt = sampling(kind, "remote")
        lora = {"lora_name": "tiny.safetensors", "strength_model": 0.8, "strength_clip": 0.0}
        prompt["hook"] = node("CreateHookLora", **lora)
        prompt["hooked"] = node(
            "ConditioningSetProperties",
            cond_NEW=["positive", 0],
            strength=1.0,
            set_cond_area="default",
            hooks=["hook", 0],
        )
        prompt["sample"]["inputs"]["positive"] = ["hooked", 0]
        assert "hooks" in comfyui.error(comfyui.start(prompt))


@pytest.mark.parametrize("kind", ["KSampler", "XDiTKSampler"])
def test_a_latent_of_another_kind_is_an_error(comfyui: ComfyUI, kind: str) -> None:
    """Four channels that are not empty are no Flux latent, remote as local."""
    prompt = sampling(kind, "remote")
    prompt["latent"] = node("TestRandomLatent", seed=1, batch=1, height=16, width=16, channels=4)
    assert comfyui.error(comfyui.start(prompt))
