"""The client in C++."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.clients.cluster import ROOT
from tests.clients.examples import MIB, ExampleClient, build, tool

FOLDER = ROOT / "clients" / "cpp"


@pytest.fixture(scope="module")
def command() -> Sequence[str]:
    """Build with Debian's gRPC, then run."""
    cmake = tool("cmake")
    build(cmake, "-S", ".", "-B", "build", folder=FOLDER)
    build(cmake, "--build", "build", "--parallel", "2", folder=FOLDER)
    return (str(FOLDER / "build" / "prompt_to_png"),)


class TestCppClient(ExampleClient):
    """`clients/cpp`."""

    sizes = (60 * MIB + 5, 3)
    # One message in its stream, and what HTTP/2 has on its way.
    most_unread = 24 * MIB
