"""Names in the store at which the ranks of an epoch find one another.

Nodes write them, and the coordinator, which hosts the store, reads who has come.
"""

from __future__ import annotations


def prefix(epoch: int) -> str:
    """Of everything that belongs to an epoch: nothing of an earlier group is ever read."""
    return f"epoch/{epoch}"


def arrival(rank: int) -> str:
    """Set to its version of ditmesh by a rank that is ready to meet the others."""
    return f"arrived/{rank}"
