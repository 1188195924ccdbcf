"""A model's description as the cluster tells it."""

from __future__ import annotations

from ditmesh.models.info import ModelInfo
from ditmesh.v1 import cluster_pb2

_PIPELINE_FILES = ("model_index.json", "vae/config.json", "text_encoder/config.json")


def has_pipeline(info: ModelInfo) -> bool:
    """Whether the model's folder holds text encoders and a VAE beside the transformer."""
    return all((info.path / file).is_file() for file in _PIPELINE_FILES)


def describe(info: ModelInfo) -> cluster_pb2.Model:
    """The message; where the model can run is left for the coordinator to set."""
    return cluster_pb2.Model(
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
    )
