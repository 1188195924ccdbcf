"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the thread that started it ends.

    Called by the child: a function between fork and exec is no good in a process with threads.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    # python -m bench.parent up ...: the command line of ditmesh, which ends with its parent.
    from ditmesh.cli import main

    end_with_parent()
    sys.exit(main(sys.argv[1:]))
