"""Models with Flux's dimensions and random weights, for measuring; no file of weights is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditmesh.models.flux_checkpoint import FluxConfig, diffusers_shapes
from ditmesh.models.loading import diffusers_arguments

PREFIX = "random-"
COMPILE_VARIABLE = "DITMESH_BENCH_COMPILE"
"""Set to have a node compile the blocks of such a model."""

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


def random_transformer(
    cls: type[nn.Module], config: FluxConfig, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A transformer whose weights are as torch initialises them. `cls`: as diffusers' own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            module = cls(**diffusers_arguments(config))
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def compile_blocks(transformer: Any) -> None:
    """Compile each block, for any size: one compilation serves all blocks of a kind."""
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.compile(dynamic=True)


def write_model(folder: Path, config: FluxConfig) -> None:
    """A model folder that has the dimensions, and for weights a file with holes in it.

    It takes no room on the disk; whoever reads the weights gets zeros.
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
        file.truncate(8 + len(words) + end)
