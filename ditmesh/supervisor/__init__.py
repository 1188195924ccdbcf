"""Runs a set of child processes and stands in for init: starts, restarts, stops and reaps them.

The parent imports everything once, then forks: eight nodes start in the time of one (import of
torch, diffusers and xfuser costs seconds a process). That is sound only as long as the parent owns
no thread, no gRPC object and no CUDA context, so the parent does nothing but wait. Where children
use CUDA they are spawned as fresh interpreters instead.

What holds for every child:

* It leads a process group of its own: Ctrl-C in a terminal reaches the supervisor only, which then
  sends one orderly SIGTERM.
* It dies with the supervisor, however that ends (`PR_SET_PDEATHSIG`, Linux only).
* Its stdin is /dev/null; stdout and stderr are the supervisor's.
* Whatever it leaves behind in its process group is killed when it ends.
"""

from ditmesh.supervisor.children import MISCONFIGURED, ChildSpec
from ditmesh.supervisor.supervise import Backoff, ChildEvent, Supervisor, tell

__all__ = ["MISCONFIGURED", "Backoff", "ChildEvent", "ChildSpec", "Supervisor", "tell"]
