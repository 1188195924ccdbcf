"""A cluster and a real ComfyUI beside it, for the tests marked `comfyui`.

They run where the environment variable COMFYUI names an unmodified checkout of ComfyUI, and
COMFYUI_PYTHON the Python that has its requirements, grpcio and protobuf (this one by default).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster

from .comfyui import ComfyUI
from .prompts import write_schnell

TOKEN = "token-of-the-tests"
TOKEN_VARIABLE = "TEST_TOKEN"
"""Where the ComfyUI of the tests has `TOKEN`."""


def pytest_configure(config: pytest.Config) -> None:
    """The marker of the tests that need a ComfyUI."""
    config.addinivalue_line("markers", "comfyui: needs a ComfyUI checkout, named by COMFYUI")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them, saying why, where there is none."""
    if os.environ.get("COMFYUI"):
        return
    skip = pytest.mark.skip(reason="needs COMFYUI=<checkout of ComfyUI>")
    for item in items:
        if item.get_closest_marker("comfyui"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two ranks with the golden model, with and without embedded guidance, and the demo model."""
    folder = tmp_path_factory.mktemp("cluster")
    made = Cluster(folder, ranks=2)
    for models in (folder / "models", folder / "local"):
        write_schnell(models / "tiny-schnell.safetensors")
    with made:
        yield made


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[ComfyUI]:
    """ComfyUI on the CPU, with the pack and the nodes that only tests use."""
    folder = tmp_path_factory.mktemp("comfyui")
    with ComfyUI(folder, cluster.address, **{TOKEN_VARIABLE: TOKEN}) as running:
        yield running
