"""The design that came before: Ray's object store, and an actor a rank that takes inputs out.

Ray has a process of its own here, `python -m bench.object_store RANKS`: it starts further ones,
which is no good in a process that has gRPC's threads. It reads sizes in MiB, one a line, and
answers each with the milliseconds that a fan-out took.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.measure import Skipped
from bench.parent import end_with_parent

_STORE_BYTES = 1 << 30
_READY = "ready"


class RayActors:
    """Ray with as many actors. Raises Skipped, when entered, where Ray does not start."""

    def __init__(self, count: int) -> None:
        self._command = [sys.executable, "-m", "bench.object_store", str(count)]

    def __enter__(self) -> RayActors:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._answer() != _READY:
            raise Skipped("Ray is not installed, or does not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def fan_out(self, mib: int) -> float:
        """Milliseconds from an array until every actor has its copy."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mib}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class _Actor:
    def __init__(self) -> None:
        self._own = np.empty(0, np.uint8)

    def take(self, references: list[Any]) -> int:
        """Copy the object into memory of its own, as a rank needs it; returns its size."""
        import ray

        shared = ray.get(references[0])
        if self._own.nbytes != shared.nbytes:
            self._own = np.empty_like(shared)
        self._own[:] = shared
        return int(shared.nbytes)


def _serve(count: int) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        num_cpus=count + 1,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    remote = ray.remote(num_cpus=1)(_Actor)
    actors = [remote.remote() for _ in range(count)]

    def fan_out(data: npt.NDArray[np.uint8]) -> float:
        started = time.perf_counter()
        reference = ray.put(data)
        # In a list, or Ray would resolve it before the call.
        taken = ray.get([actor.take.remote([reference]) for actor in actors])
        assert taken == [data.nbytes] * count
        return 1e3 * (time.perf_counter() - started)

    fan_out(np.zeros(1, np.uint8))
    print(_READY, flush=True)
    for line in sys.stdin:
        data = np.random.default_rng(int(line)).integers(0, 256, int(line) << 20, np.uint8)
        print(fan_out(data), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    end_with_parent()
    _serve(int(sys.argv[1]))
