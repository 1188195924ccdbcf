"""One cluster for all languages, and the picture that each client has to bring home."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ditmesh.client import Client
from tests.clients import cluster, examples


@pytest.fixture(scope="session")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with cluster.cluster(tmp_path_factory.mktemp("languages")) as address:
        yield address


@pytest.fixture(scope="session")
def expected_picture(coordinator: str) -> bytes:
    """What the Python client gets for the prompt of `examples`, of which it has hashes only."""
    with Client(coordinator) as client:
        prompt = client.encode_prompt(cluster.MODEL, examples.PROMPT, hashes_only=True)
        result = client.sample(
            model=cluster.MODEL,
            positive=prompt.conditioning,
            size=(1, examples.SIZE // 8, examples.SIZE // 8),
            steps=examples.STEPS,
            seed=examples.SEED,
        )
        return client.decode_png(cluster.MODEL, result.latent)[0]
