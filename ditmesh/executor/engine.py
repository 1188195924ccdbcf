"""What differs between a rank of a group and the coordinator's local sampler."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ditmesh.errors import BadResult, InvalidRequest, StaleEpoch
from ditmesh.executor.control import Control, LocalControl, StopFlag
from ditmesh.executor.models import ModelCache
from ditmesh.models.model import LocalModel, Model
from ditmesh.models.patches import PatchSet
from ditmesh.v1 import node_pb2 as pb


class Engine(Protocol):
    """Models and meshes of one process. Called on the torch thread unless said otherwise."""

    @property
    def cache(self) -> ModelCache:
        """Weights in memory."""
        ...

    @property
    def epoch(self) -> int:
        """The group this process is in, 0 for none. Any thread."""
        ...

    def require(self, epoch: int, mesh: int) -> None:
        """Raises StaleEpoch unless this process is in that group and mesh. Any thread."""
        ...

    def leads(self, mesh: int) -> bool:
        """Whether this process is the one of the mesh that answers. Any thread."""
        ...

    def model(self, name: str, mesh: int, patches: PatchSet | None = None) -> Model:
        """The model on a mesh, loaded and patched if need be. Raises as `ModelCache.get`."""
        ...

    def control(self, mesh: int, flag: StopFlag, job_id: str) -> Control:
        """The control of a job on a mesh."""
        ...

    def join(self, request: pb.JoinGroupRequest, aborted: threading.Event) -> None:
        """Form the group with the other ranks; returns when all have joined, and ends with an
        error when `aborted` is set before. The epoch is newer than any before.
        """
        ...

    def abort(self) -> None:
        """Break whatever the group is doing. Any thread; the torch thread may be stuck."""
        ...

    def leave(self) -> None:
        """Drop the group's communicators."""
        ...


@contextmanager
def all_or_none(engine: Engine) -> Iterator[None]:
    """A rank that fails alone takes the group with it: others wait for it in a collective, and the
    work that waits behind this must not answer them.
    """
    try:
        yield
    except (BadResult, InvalidRequest):
        # Every rank raises these alike.
        raise
    except BaseException:
        engine.abort()
        raise


class LocalEngine:
    """One process by itself: no group, epoch 0, mesh 0."""

    def __init__(self, cache: ModelCache) -> None:
        self.cache = cache
        self.epoch = 0

    def require(self, epoch: int, mesh: int) -> None:
        """See `Engine.require`."""
        if epoch or mesh:
            raise StaleEpoch(f"this is a local sampler; it has no epoch {epoch}, mesh {mesh}")

    def leads(self, mesh: int) -> bool:
        """Always: it is alone."""
        return True

    def model(self, name: str, mesh: int, patches: PatchSet | None = None) -> Model:
        """See `Engine.model`."""
        return LocalModel(self.cache.catalogue.get(name), self.cache.get(name, patches))

    def control(self, mesh: int, flag: StopFlag, job_id: str) -> Control:
        """See `Engine.control`."""
        return LocalControl(flag)

    def join(self, request: pb.JoinGroupRequest, aborted: threading.Event) -> None:
        """Raises StaleEpoch: a local sampler joins no group."""
        raise StaleEpoch("this is a local sampler; it joins no group")

    def abort(self) -> None:
        """Nothing to break."""

    def leave(self) -> None:
        """Nothing to leave."""
