"""The pack in a real ComfyUI as its editor loads it: example workflows, help pages, languages."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .comfyui import PACK, ComfyUI, Prompt
from .prompts import node, sampling, write_lora
from .workflow_api import to_prompt

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]

NODES = (
    *("XDiTDispatcher", "XDiTRemoteModel", "XDiTKSampler", "XDiTKSamplerAdvanced"),
    *("XDiTEncodePrompt", "XDiTDecode"),
)


def test_the_pack_loads_in_no_time(comfyui: ComfyUI) -> None:
    """All nodes are there, and ComfyUI starts at most half a second later."""
    info = comfyui.object_info()
    assert {name for name in info if name.startswith("XDiT")} == set(NODES)
    (seconds,) = re.findall(r"([\d.]+) seconds: \S+ditmesh", comfyui.log.read_text())
    assert float(seconds) <= 0.5


def test_the_editor_finds_pages_languages_and_workflows(comfyui: ComfyUI) -> None:
    """Where it looks for them: a page in the user's language or the one without, and so on."""
    for name in NODES:
        assert comfyui.text(f"/extensions/ditmesh/docs/{name}.md").startswith("# ")
        assert comfyui.text(f"/extensions/ditmesh/docs/{name}/zh.md").startswith("# ")
    languages = json.loads(comfyui.text("/i18n"))
    for language in ("en", "zh"):
        assert set(NODES) <= set(languages[language]["nodeDefs"])
    examples = json.loads(comfyui.text("/workflow_templates"))["ditmesh"]
    assert sorted(examples) == sorted(p.stem for p in (PACK / "example_workflows").glob("*.json"))
    for name in examples:
        assert comfyui.text(f"/api/workflow_templates/ditmesh/{name}.json")


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


def test_the_checkout_is_unmodified() -> None:
    """The tests use ComfyUI as it is: nothing of theirs lies in its folder of custom nodes."""
    custom = Path(os.environ["COMFYUI"]) / "custom_nodes"
    assert not (custom / "testing").exists()
