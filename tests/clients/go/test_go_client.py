"""The client in Go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.clients.cluster import ROOT
from tests.clients.examples import MIB, ExampleClient, build

FOLDER = ROOT / "clients" / "go"

# Building takes a minute, and the toolchain hundreds of megabytes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def command() -> Sequence[str]:
    """Build with Debian's packages, then run."""
    build("./build.sh", folder=FOLDER)
    return (str(FOLDER / "build" / "prompt_to_png"),)


class TestGoClient(ExampleClient):
    """`clients/go`."""

    sizes = (60 * MIB + 5, 3)
    # What the library gathers before it says that the stream is full, and HTTP/2 has on its way.
    most_unread = 24 * MIB
