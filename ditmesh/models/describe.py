"""A model's description as the cluster tells it."""

from __future__ import annotations

from ditmesh.models.info import ModelInfo
from ditmesh.models.registry import family
from ditmesh.v1 import cluster_pb2

VAE_FACTOR = 8
"""Pixels along one side of a latent cell, of every family so far."""

_PIPELINE_FILES = ("model_index.json", "vae/config.json", "text_encoder/config.json")


def has_pipeline(info: ModelInfo) -> bool:
    """Whether the model's folder holds text encoders and a VAE beside the transformer."""
    return all((info.path / file).is_file() for file in _PIPELINE_FILES)


def describe(info: ModelInfo) -> cluster_pb2.Model:
    """The message; where the model can run is left for the coordinator to set."""
    adapter = family(info.family)
    config, latents = info.config, info.latent_format
    message = cluster_pb2.Model(
        name=info.name,
        family=info.family,
        latent_channels=info.latent_channels,
        parameters=info.num_parameters,
        fingerprint=info.fingerprint,
        has_pipeline=has_pipeline(info),
        size_multiple=info.patch_size,
        text_dim=info.text_dim,
        pooled_dim=info.pooled_dim,
        num_heads=info.num_heads,
        latent_scale=latents.scale,
        latent_shift=latents.shift,
        preview_factors=[factor for row in latents.rgb_factors for factor in row],
        preview_bias=latents.rgb_bias,
        dimensions={
            "num_layers": config.num_layers,
            "num_single_layers": config.num_single_layers,
            "head_dim": config.head_dim,
            "guidance_embeds": int(config.guidance_embeds),
        },
        vae_factor=VAE_FACTOR,
        default_shift=adapter.default_shift if info.default_shift is None else info.default_shift,
    )
    if info.guidance_embeds and adapter.default_guidance is not None:
        message.default_guidance = adapter.default_guidance
    return message
