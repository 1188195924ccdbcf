"""The client in bash, with grpcurl and jq."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.clients.cluster import ROOT
from tests.clients.examples import MIB, ExampleClient, tool

SCRIPT = ROOT / "clients" / "shell" / "prompt_to_png.sh"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Run by bash, with the programs that the tests' environment has."""
    tool("jq")
    monkeypatch.setenv("GRPCURL", tool("grpcurl"))
    return (tool("bash"), str(SCRIPT))


class TestShellClient(ExampleClient):
    """`clients/shell`."""

    # Tensors are text on their way through jq: small ones do.
    sizes = (2 * MIB + 5, 3)
