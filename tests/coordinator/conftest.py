"""Hypothesis without a time limit per example: the machine may be busy with ranks."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def only_new_garbage() -> Iterator[None]:
    """Tests that look for leaks need not walk through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()
