"""Models with Flux's dimensions and random weights, for measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ditmesh.models.flux_checkpoint import FluxConfig, diffusers_shapes
from ditmesh.models.loading import diffusers_arguments

FLUX_DEV = FluxConfig(
    latent_channels=16,
    num_layers=19,
    num_single_layers=38,
    num_heads=24,
    head_dim=128,
    text_dim=4096,
    pooled_dim=768,
    guidance_embeds=True,
    axes_dims=(16, 56, 56),
)
"""Flux.1-dev, 11.9 billion parameters."""

_ITEM_BYTES = 2


def write_model(folder: Path, config: FluxConfig, device: torch.device | None = None) -> None:
    """A model folder that has the dimensions, its weights in bf16.

    With a `device`, which draws them, weights are random, as large as torch makes new ones.
    Without, the file has holes in their place: it takes no room on the disk, and whoever reads
    the weights gets zeros.
    """
    folder.mkdir(parents=True)
    arguments = {**diffusers_arguments(config), "_class_name": "FluxTransformer2DModel"}
    (folder / "config.json").write_text(json.dumps(arguments))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in diffusers_shapes(config).items():
        start, end = end, end + _ITEM_BYTES * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        if device is not None:
            _write_random(file, config, device)
        file.truncate(8 + len(words) + end)


def _write_random(file: BinaryIO, config: FluxConfig, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for name, shape in diffusers_shapes(config).items():
        if name.endswith(".bias"):
            value = torch.zeros(shape)
        elif len(shape) == 1:
            value = torch.ones(shape)  # of a norm
        else:
            value = torch.randn(shape, device=device, generator=generator)
            value /= (3 * shape[1]) ** 0.5
        file.write(value.to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes())
