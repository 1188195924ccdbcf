"""Node addresses: what an operator may write, and what comes of it."""

from __future__ import annotations

import pytest

from coordinator.addresses import expand


def test_ranges_and_single_nodes_in_order_once_each() -> None:
    """A range is a node a port; a name stays a name; what stands twice counts once."""
    given = ("node-0.nodes:50061-50063", "10.0.0.7:50061", "node-0.nodes:50062")
    assert expand(given) == (
        "node-0.nodes:50061",
        "node-0.nodes:50062",
        "node-0.nodes:50063",
        "10.0.0.7:50061",
    )


def test_all_addresses_of_a_name() -> None:
    """`all:` asks the resolver now, for a headless service whose pods come and go together."""
    assert "127.0.0.1:50061" in expand(["all:localhost:50061"])


def test_other_kinds_of_address() -> None:
    """Unix sockets and IPv6 literals pass through."""
    assert expand(["unix:/run/node.sock", "[::1]:50061"]) == ("unix:/run/node.sock", "[::1]:50061")


@pytest.mark.parametrize("entry", ["node", "node:", "node:0", "node:9-8", "node:70000", ":1"])
def test_what_is_no_address_stops_the_start(entry: str) -> None:
    """The words say what would be right."""
    with pytest.raises(ValueError, match="HOST:FIRST-LAST"):
        expand([entry])
