"""Prompt to picture with the shipped model, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import FluxPipeline

from ditmesh.sampling.noise import initial_noise
from tests.e2e.cluster import DEMO_MODEL, Cluster
from tests.e2e.clusters import Clusters

pytestmark = pytest.mark.timeout(300)

FOLDER = Path(__file__).parents[2] / "models" / DEMO_MODEL
PROMPT = "a girl with long red hair and glasses, green shirt, blue background"
SEED, STEPS, SIDE, TOKENS = 7, 20, 16, 64
SIGMAS = np.linspace(1, 1 / STEPS, STEPS, dtype=np.float32)
SAME = 0.5 / 255
"""How far a pixel, 0 to 1, may be from diffusers': then any two pictures are within 1/255."""

Picture = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def expected() -> Picture:
    """What diffusers draws, fed the seed's noise and the same sigmas: [128, 128, 3]."""
    pipeline = FluxPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise((1, 16, SIDE, SIDE), SEED)
    packed = pipeline._pack_latents(noise, 1, 16, SIDE, SIDE)
    with torch.inference_mode():
        drawn = pipeline(
            PROMPT,
            height=8 * SIDE,
            width=8 * SIDE,
            sigmas=SIGMAS.tolist(),
            num_inference_steps=STEPS,
            latents=packed,
            max_sequence_length=TOKENS,
            output_type="np",
        )
    picture: Picture = drawn.images[0]
    assert picture.std() > 0.1  # not a grey one
    return picture


def draw(cluster: Cluster, executor: str, **options: Any) -> Picture:
    """The picture of the prompt, wholly sampled by that executor."""
    client = cluster.client
    result = client.sample(
        model=DEMO_MODEL,
        positive=client.encode_prompt(DEMO_MODEL, PROMPT).conditioning,
        size=(1, SIDE, SIDE),
        sigmas=np.append(SIGMAS, np.float32(0)),
        seed=SEED,
        **options,
    )
    assert {segment.executor for segment in result.summary.segments} == {executor}
    return client.decode(DEMO_MODEL, result.latent)[0]


def test_picture_of_eight_ranks(eight: Cluster, expected: Picture) -> None:
    """Eight ranks draw what diffusers draws, in float, in every pixel."""
    assert np.abs(draw(eight, "group", fallback="forbid") - expected).max() < SAME


def test_picture_of_the_fallback(eight: Cluster, expected: Picture) -> None:
    """So does the local sampler."""
    assert np.abs(draw(eight, "local", fallback="local_only") - expected).max() < SAME


def test_picture_of_one_rank(clusters: Clusters, expected: Picture) -> None:
    """So does a group of one."""
    one = clusters.get(ranks=1)
    assert np.abs(draw(one, "group", fallback="forbid") - expected).max() < SAME
