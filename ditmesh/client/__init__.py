"""The Python client: sampling jobs and single transformer calls on a ditmesh cluster.

    from ditmesh.client import Client, Conditioning

    with Client("coordinator:50050") as client:
        result = client.sample(
            model="flux1-dev",
            positive=Conditioning(text=t5_embedding, pooled=clip_pooled, guidance=3.5),
            size=(1, 128, 128),  # batch, latent rows, latent columns: 1024x1024 pixels
            steps=20,
            seed=7,
            on_progress=lambda p: print(f"{p.step}/{p.steps}"),
        )
    result.latent  # numpy, [1, 16, 128, 128], in model space

Needs grpcio, protobuf and numpy; torch tensors are taken where numpy arrays are, but torch is
never imported. `Client` blocks, `AsyncClient` is for asyncio; both have the same methods.
"""

from ditmesh.client.aio import AsyncClient, AsyncJobHandle, AsyncPredictStream
from ditmesh.client.blocking import Client, JobHandle, PredictStream
from ditmesh.client.cluster import ClusterSnapshot, ModelCard
from ditmesh.client.conditioning import Conditioning
from ditmesh.client.connection import TLS
from ditmesh.client.events import (
    Accepted,
    Done,
    Event,
    FallbackNote,
    Progress,
    Queued,
    Retrying,
    SampleResult,
    Segment,
    Summary,
)
from ditmesh.client.job import Fallback, JobOptions
from ditmesh.client.pipeline import EncodedPrompt
from ditmesh.client.weights import WeightPatch
from ditmesh.jobs import Snapshot
from ditmesh.models.latents import FLUX, LatentFormat

__all__ = [
    "FLUX",
    "TLS",
    "Accepted",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncPredictStream",
    "Client",
    "ClusterSnapshot",
    "Conditioning",
    "Done",
    "EncodedPrompt",
    "Event",
    "Fallback",
    "FallbackNote",
    "JobHandle",
    "JobOptions",
    "LatentFormat",
    "ModelCard",
    "PredictStream",
    "Progress",
    "Queued",
    "Retrying",
    "SampleResult",
    "Segment",
    "Snapshot",
    "Summary",
    "WeightPatch",
]
