"""The client in TypeScript."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.clients.cluster import ROOT
from tests.clients.examples import MIB, ExampleClient, build, tool

FOLDER = ROOT / "clients" / "node"


@pytest.fixture(scope="module")
def command() -> Sequence[str]:
    """Compile with strict types, then run by node."""
    build(tool("npm"), "run", "build", folder=FOLDER)
    return (tool("node"), str(FOLDER / "dist" / "prompt_to_png.js"))


class TestNodeClient(ExampleClient):
    """`clients/node`."""

    sizes = (60 * MIB + 5, 3)
    # Sixteen messages in its stream, and what HTTP/2 has on its way.
    most_unread = 32 * MIB
