"""Groups of real processes, shared by the tests of this folder; forming them costs seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ditmesh.models.info import ModelInfo, inspect
from ditmesh.models.model import LocalModel
from tests.gpu_node.parallel import on_rank
from tests.gpu_node.parallel.cases import MESHES, SINGLE_FILE
from tests.ranks import Ranks


@pytest.fixture(scope="session")
def info() -> ModelInfo:
    """The golden model."""
    return inspect(SINGLE_FILE)


@pytest.fixture(scope="session")
def local(info: ModelInfo) -> LocalModel:
    """The golden model in fp32 in this process: what every mesh must agree with."""
    return LocalModel.load(info, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def eight() -> Iterator[Ranks]:
    """Eight ranks in one epoch that has all of `MESHES`, the golden model loaded."""
    with Ranks(8) as ranks:
        ranks.run(on_rank.load, torch.float32)
        ranks.run(on_rank.join, 1, MESHES)
        yield ranks
