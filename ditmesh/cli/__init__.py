"""The `ditmesh` command: a local cluster, jobs, its state, traces and a demonstration."""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # gRPC reads it when it is first imported; what it logs about lost connections is said better
    # by the errors of ditmesh.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from ditmesh.cli.program import run

    return run(argv)
