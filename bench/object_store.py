"""The design that came before: Ray's object store, and an actor a rank that takes inputs out."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

_STORE_BYTES = 1 << 30


class RayActors:
    """A local Ray with as many actors. Raises ImportError where Ray is not installed."""

    def __init__(self, count: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray: Any = ray
        self._count = count
        self._actors: list[Any] = []

    def __enter__(self) -> RayActors:
        ray = self._ray
        ray.init(
            num_cpus=self._count + 1,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
        )

        class Actor:
            def __init__(self) -> None:
                self._own = np.empty(0, np.uint8)

            def take(self, references: list[Any]) -> int:
                """Copy the object into memory of its own, as a rank needs it; returns its size."""
                shared = ray.get(references[0])
                if self._own.nbytes != shared.nbytes:
                    self._own = np.empty_like(shared)
                self._own[:] = shared
                return int(shared.nbytes)

        remote = ray.remote(num_cpus=1)(Actor)
        self._actors = [remote.remote() for _ in range(self._count)]
        self.fan_out(np.zeros(1, np.uint8))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ray.shutdown()

    def fan_out(self, data: npt.NDArray[np.uint8]) -> None:
        """Put once; returns when every actor has its copy."""
        reference = self._ray.put(data)
        # In a list, or Ray would resolve it before the call.
        taken = self._ray.get([actor.take.remote([reference]) for actor in self._actors])
        assert taken == [data.nbytes] * self._count
