"""The suites by name, in the order in which they run."""

from __future__ import annotations

import importlib
from typing import cast

from bench.measure import Suite

NAMES = (
    "overhead",
    "fanout",
    "predict",
    "scaling",
    "busy",
    "startup",
    "tracing",
    "gpu",
)


def suite(name: str) -> Suite:
    """The suite of that name; imported only when it is wanted."""
    return cast(Suite, importlib.import_module(f"bench.suites.{name}"))
