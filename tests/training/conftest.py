"""Portraits rendered once, so that no test needs Node."""

from pathlib import Path

import pytest

from training.portraits.dataset import Portraits, load


@pytest.fixture(scope="session")
def portraits() -> Portraits:
    """64 held-out portraits with their attributes."""
    return load(Path(__file__).parent / "portraits.npz")
