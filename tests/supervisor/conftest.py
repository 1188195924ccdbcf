"""Supervisors that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.supervisor.driver import Driver


@pytest.fixture
def start() -> Iterator[Callable[..., Driver]]:
    """Starts a supervisor of these children, in a process of its own."""
    drivers: list[Driver] = []

    def make(*children: dict[str, Any], **options: Any) -> Driver:
        drivers.append(Driver(*children, **options))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.process.kill()
        driver.process.communicate()
