"""Flux.1 weights on disk: their names, shapes and dimensions, in both layouts.

`diffusers` is the layout of diffusers' `FluxTransformer2DModel`. `single_file` is the layout of
Black Forest Labs' reference code, which ComfyUI uses too, with `model.diffusion_model.` before
each name where the file holds more than the transformer. The second fuses query, key and value
(and, in single-stream blocks, the MLP's input) into one matrix, and its last modulation yields
shift before scale, where diffusers has scale before shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PATCH_SIZE = 2
"""Latent rows and columns that one token covers."""

TIME_CHANNELS = 256
"""Width of the sinusoidal embedding of timestep and guidance."""


@dataclass(frozen=True)
class FluxConfig:
    """The dimensions that define a Flux.1 transformer."""

    latent_channels: int
    num_layers: int
    num_single_layers: int
    num_heads: int
    head_dim: int
    text_dim: int
    pooled_dim: int
    guidance_embeds: bool
    axes_dims: tuple[int, ...]

    @property
    def hidden(self) -> int:
        """Width of the token stream."""
        return self.num_heads * self.head_dim

    @property
    def token_channels(self) -> int:
        """Values in one latent token."""
        return self.latent_channels * PATCH_SIZE * PATCH_SIZE


@dataclass(frozen=True)
class Source:
    """Where a diffusers tensor lies: rows of one or more stored tensors, in this order.

    Each part is (stored name, first row, last row + 1).
    """

    parts: tuple[tuple[str, int, int], ...]


def diffusers_shapes(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor name of the diffusers layout with its shape."""
    return dict(_entries(config))


def diffusers_sources(config: FluxConfig) -> dict[str, Source]:
    """Each diffusers tensor, from itself."""
    return {
        name: Source(((name, 0, shape[0]),)) for name, shape in diffusers_shapes(config).items()
    }


def single_file_sources(config: FluxConfig, prefix: str = "") -> dict[str, Source]:
    """Each diffusers tensor, from the rows of a single file's tensors."""
    shapes = diffusers_shapes(config)
    return {
        name: Source(
            tuple(
                (prefix + stored, start, stop)
                for stored, start, stop in _single_file_parts(name, shapes[name][0], config.hidden)
            )
        )
        for name in shapes
    }


def stored_shapes(
    sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that the stored tensors must have to serve all `sources`."""
    stored: dict[str, tuple[int, ...]] = {}
    for name, source in sources.items():
        for key, _, stop in source.parts:
            rows = max(stop, stored.get(key, (0,))[0])
            stored[key] = (rows, *shapes[name][1:])
    return stored


def _entries(config: FluxConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, tokens = config.hidden, config.token_channels
    yield from _linear("x_embedder", hidden, tokens)
    yield from _linear("context_embedder", hidden, config.text_dim)
    embedders = {"timestep": TIME_CHANNELS, "text": config.pooled_dim}
    if config.guidance_embeds:
        embedders["guidance"] = TIME_CHANNELS
    for embedder, width in embedders.items():
        yield from _linear(f"time_text_embed.{embedder}_embedder.linear_1", hidden, width)
        yield from _linear(f"time_text_embed.{embedder}_embedder.linear_2", hidden, hidden)
    for index in range(config.num_layers):
        yield from _double_block(f"transformer_blocks.{index}", config)
    for index in range(config.num_single_layers):
        yield from _single_block(f"single_transformer_blocks.{index}", config)
    yield from _linear("norm_out.linear", 2 * hidden, hidden)
    yield from _linear("proj_out", tokens, hidden)


def _double_block(block: str, config: FluxConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config.hidden
    for norm in ("norm1", "norm1_context"):
        yield from _linear(f"{block}.{norm}.linear", 6 * hidden, hidden)
    for projection in (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ):
        yield from _linear(f"{block}.attn.{projection}", hidden, hidden)
    for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield f"{block}.attn.{norm}.weight", (config.head_dim,)
    for mlp in ("ff", "ff_context"):
        yield from _linear(f"{block}.{mlp}.net.0.proj", 4 * hidden, hidden)
        yield from _linear(f"{block}.{mlp}.net.2", hidden, 4 * hidden)


def _single_block(block: str, config: FluxConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config.hidden
    yield from _linear(f"{block}.norm.linear", 3 * hidden, hidden)
    for projection in ("to_q", "to_k", "to_v"):
        yield from _linear(f"{block}.attn.{projection}", hidden, hidden)
    for norm in ("norm_q", "norm_k"):
        yield f"{block}.attn.{norm}.weight", (config.head_dim,)
    yield from _linear(f"{block}.proj_mlp", 4 * hidden, hidden)
    yield from _linear(f"{block}.proj_out", hidden, 5 * hidden)


def _linear(
    name: str, out_features: int, in_features: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out_features, in_features)
    yield f"{name}.bias", (out_features,)


_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_DOUBLE_FUSED = {
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
}
_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
_SINGLE_FUSED = {
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
}


def _single_file_parts(name: str, rows: int, hidden: int) -> list[tuple[str, int, int]]:
    module, leaf = name.rsplit(".", 1)
    if module == "norm_out.linear":
        stored = f"final_layer.adaLN_modulation.1.{leaf}"
        return [(stored, hidden, 2 * hidden), (stored, 0, hidden)]
    if module in _TOP:
        return [(f"{_TOP[module]}.{leaf}", 0, rows)]
    kind, index, inner = module.split(".", 2)
    double = kind == "transformer_blocks"
    block = f"{'double_blocks' if double else 'single_blocks'}.{index}"
    fused = (_DOUBLE_FUSED if double else _SINGLE_FUSED).get(inner)
    if fused is not None:
        stored, position = fused
        return [(f"{block}.{stored}.{leaf}", position * hidden, position * hidden + rows)]
    stored = (_DOUBLE if double else _SINGLE)[inner]
    # RMSNorm weights are called scale in the reference code.
    leaf = "scale" if stored.endswith("_norm") else leaf
    return [(f"{block}.{stored}.{leaf}", 0, rows)]
