"""Overlays built once for all tests; the tools they need are installed if they are not there."""

from __future__ import annotations

import copy

import pytest

from deploy.check import manifests, tools
from deploy.check.manifests import Manifest
from tests.deploy.overlays import Built


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    tools.install()


@pytest.fixture(scope="session")
def _built() -> dict[str, list[Manifest]]:
    return {}


@pytest.fixture
def built(_built: dict[str, list[Manifest]]) -> Built:
    """Builds an overlay by name; what it returns may be changed."""

    def build(name: str) -> list[Manifest]:
        if name not in _built:
            _built[name] = manifests.build(manifests.OVERLAYS / name)
        return copy.deepcopy(_built[name])

    return build
