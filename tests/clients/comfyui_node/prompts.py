"""Prompts for ComfyUI's HTTP API, and how the latents that they make compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from tests.sampling.golden_cases import CHECKPOINT

from .comfyui import ComfyUI, Prompt

EXACT = 1e-4
"""At 8 steps, for latents up to GOLDEN_PEAK; a random model that goes beyond magnifies rounding."""
GOLDEN_PEAK = 14.0
KSAMPLER = ("KSampler", "local")
"""ComfyUI's own way."""


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
        return report(self._outputs, f"{name}.sample")


def report(outputs: dict[str, Any], node: str = "sample") -> dict[str, Any]:
    """What our sampler says of who made the picture."""
    (found,) = outputs[node]["xdit"]
    data: dict[str, Any] = found
    return data


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt; a link is [node, output]."""
    return {"class_type": kind, "inputs": inputs}


def merged(**prompts: Prompt) -> Prompt:
    """Several prompts as one: each node is called "<prompt>.<name>", but nodes without links that
    all have alike are there once. What they load stays loaded from one prompt to the next.
    """
    result: Prompt = {}
    for name, prompt in prompts.items():
        own = {key: f"{name}.{key}" for key in prompt if not _shared(key, prompts)}
        for key, entry in prompt.items():
            inputs = {
                field: [own.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
                for field, value in entry["inputs"].items()
            }
            result[own.get(key, key)] = {**entry, "inputs": inputs}
    return result


def _shared(key: str, prompts: dict[str, Prompt]) -> bool:
    entries = [prompt.get(key) for prompt in prompts.values()]
    links = any(
        isinstance(value, list) for value in (entries[0] or {"inputs": {}})["inputs"].values()
    )
    return not links and all(entry == entries[0] for entry in entries)


def sampling(
    kind: str,
    model: str,
    *,
    sampler: str = "euler",
    dispatcher: dict[str, Any] | None = None,
    **changes: Any,
) -> Prompt:
    """A prompt that samples the golden model: `kind` is the sampler node, `model` is `remote`
    (on the cluster) or `local` (with weights). `dispatcher`: inputs of one, for those that take it.
    """
    inputs = {
        "seed": 42,
        "steps": 8,
        "cfg": 1.0,
        "sampler_name": sampler,
        "scheduler": "simple",
        "denoise": 1.0,
        **changes,
    }
    prompt = {
        "positive": _text(1, 16),
        "negative": _text(2, 13),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "model": node("TestTinyFlux", path=str(CHECKPOINT), dtype="float32"),
        "sample": node(
            kind,
            model=["model", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            **inputs,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="latent"),
    }
    if model == "remote":
        prompt["model"] = node("XDiTRemoteModel", model_name="tiny-flux")
    if dispatcher is not None:
        inputs = {"fallback": "allow", "time_limit": 0.0, **dispatcher}
        prompt["dispatcher"] = node("XDiTDispatcher", **inputs)
        for name in ("sample", "model"):
            if prompt[name]["class_type"].startswith("XDiT"):
                prompt[name]["inputs"]["xdit_dispatcher"] = ["dispatcher", 0]
    return prompt


def _text(seed: int, tokens: int) -> dict[str, Any]:
    return node(
        "TestRandomConditioning", seed=seed, tokens=tokens, width=64, pooled=32, guidance=3.5
    )


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


def write_schnell(path: Path) -> None:
    """The golden model without embedded guidance, as schnell is."""
    weights: dict[str, torch.Tensor] = load_torch(CHECKPOINT)
    save_torch({k: v for k, v in weights.items() if not k.startswith("guidance_in.")}, path)
