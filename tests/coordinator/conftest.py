"""Garbage collection of these tests alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def only_new_garbage() -> Iterator[None]:
    """Tests that look for leaks need not walk through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()
