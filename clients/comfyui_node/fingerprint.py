"""Is this MODEL what the cluster serves? Shapes and fixed samples of every weight say so.

A name would be a guess, and a wrong guess a silently wrong picture. The cluster computes the same
fingerprint from its files, whatever their layout or element type.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from ditmesh.models.fingerprint import weights_fingerprint
from ditmesh.models.flux_checkpoint import (
    FluxConfig,
    diffusers_shapes,
    single_file_sources,
    stored_shapes,
)

PREFIX = "diffusion_model."
"""Before the names of a transformer's weights in ComfyUI."""

_EXACT_TYPES = ("torch.float32", "torch.bfloat16", "torch.float16")
_KNOWN: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def model_fingerprint(patcher: Any) -> str:
    """The fingerprint of a MODEL's own weights, whatever LoRA is merged into them at the moment.

    Empty for what is not a Flux.1 in full precision: quantised weights are not the same model.
    """
    base = patcher.model
    if base not in _KNOWN:
        _KNOWN[base] = _compute(patcher)
    return _KNOWN[base]


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> FluxConfig | None:
    """The dimensions of a Flux in ComfyUI's layout, from its names and shapes.

    None for another architecture, and for one with more or other weights than Flux.1.
    """
    try:
        hidden, token_channels = shapes["img_in.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn.norm.key_norm.scale"]
        config = FluxConfig(
            latent_channels=token_channels // 4,
            num_layers=_blocks(shapes, "double_blocks"),
            num_single_layers=_blocks(shapes, "single_blocks"),
            num_heads=hidden // head_dim,
            head_dim=head_dim,
            text_dim=shapes["txt_in.weight"][1],
            pooled_dim=shapes["vector_in.in_layer.weight"][1],
            guidance_embeds="guidance_in.in_layer.weight" in shapes,
            axes_dims=(),
        )
    except (KeyError, ValueError, IndexError):
        return None
    return config if single_file_shapes(config) == dict(shapes) else None


def single_file_shapes(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights as ComfyUI has them."""
    return stored_shapes(single_file_sources(config), diffusers_shapes(config))


def _compute(patcher: Any) -> str:
    weights = _original_weights(patcher)
    config = config_of({name: tuple(value.shape) for name, value in weights.items()})
    if config is None or any(str(value.dtype) not in _EXACT_TYPES for value in weights.values()):
        return ""

    def read(name: str, start: int, stop: int) -> bytes:
        import torch

        elements = weights[name].detach().reshape(-1)[start:stop].to("cpu", torch.bfloat16)
        return bytes(elements.view(torch.int16).numpy().astype("<i2").tobytes())

    shapes, sources = diffusers_shapes(config), single_file_sources(config)
    return weights_fingerprint(shapes, sources, read).hex()


def _original_weights(patcher: Any) -> dict[str, Any]:
    """The transformer's weights without the patches that are merged into them."""
    weights = dict(patcher.model.state_dict())
    weights.update({name: entry.weight for name, entry in patcher.backup.items()})
    return {
        name.removeprefix(PREFIX): value
        for name, value in weights.items()
        if name.startswith(PREFIX)
    }


def _blocks(shapes: Mapping[str, tuple[int, ...]], kind: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{kind}.")})
