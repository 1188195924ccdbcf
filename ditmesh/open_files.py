"""How many files this process may have open: streams and mapped tensors have one each."""

from __future__ import annotations

import sys


def allow_most() -> bool:
    """Allow this process, and its children, as many open files as it may allow itself.

    What a shell gives is often 1024. Returns whether that could be had: Windows has no such limit
    to set, and some systems refuse more than they can have.
    """
    if sys.platform == "win32":
        return False
    import resource  # Unix has it

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return False
    return True
