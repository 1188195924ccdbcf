"""The engine of a rank: models on the meshes of the group that it is in."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from ditmesh.errors import GroupLost, StaleEpoch
from ditmesh.executor.control import Control, StopFlag
from ditmesh.executor.models import ModelCache
from ditmesh.mesh import MeshSpec
from ditmesh.models.model import Model
from ditmesh.models.patches import PatchSet
from ditmesh.v1 import node_pb2 as pb
from gpu_node.mesh_control import MeshControl
from gpu_node.parallel import runtime
from gpu_node.parallel.model import MeshModel
from gpu_node.parallel.torch_groups import first_line

log = logging.getLogger(__name__)

_CONNECT_S = 20.0
# Short, because nothing else interrupts it.
_ATTEMPT = timedelta(seconds=2)
_STORE_TIMEOUT = timedelta(seconds=30)


class GroupEngine:
    """Models and meshes of one rank. See `ditmesh.executor.engine.Engine`."""

    def __init__(self, cache: ModelCache, device: torch.device, interface: str) -> None:
        """`interface`: the network interface that collectives use."""
        self.cache = cache
        self._device = device
        self._interface = interface
        self._group: runtime.Group | None = None
        self._meshes: tuple[MeshSpec, ...] = ()
        self._joining = 0

    @property
    def epoch(self) -> int:
        """The group this rank is in or about to join, 0 for none."""
        group = self._group
        return group.epoch if group is not None else self._joining

    def require(self, epoch: int, mesh: int) -> None:
        """Raises StaleEpoch unless this rank is in that group and mesh."""
        group = self._group
        if group is None or group.epoch != epoch or group.aborted:
            raise StaleEpoch(f"this node is in epoch {self.epoch}, not {epoch}")
        if mesh >= len(self._meshes) or group.rank not in self._meshes[mesh].ranks:
            raise StaleEpoch(f"this node has no place in mesh {mesh} of epoch {epoch}")

    def leads(self, mesh: int) -> bool:
        """Whether this is the first rank of the mesh."""
        return self._joined().rank == self._meshes[mesh].ranks[0]

    def model(self, name: str, mesh: int, patches: PatchSet | None = None) -> Model:
        """See `Engine.model`."""
        info = self.cache.catalogue.get(name)
        group = self._joined()
        if group.aborted:
            # A new one would have to wait for these weights.
            raise GroupLost(f"epoch {group.epoch} is over")
        return MeshModel(info, self.cache.get(name, patches), group, self._meshes[mesh])

    def control(self, mesh: int, flag: StopFlag, job_id: str) -> Control:
        """See `Engine.control`."""
        return MeshControl(self._joined(), self._meshes[mesh], flag, job_id)

    def join(self, request: pb.JoinGroupRequest, aborted: threading.Event) -> None:
        """See `Engine.join`. Raises InvalidMesh or GroupLost."""
        if aborted.is_set():
            raise GroupLost(f"epoch {request.epoch} was aborted before it was joined")
        self._joining = request.epoch
        meshes = tuple(MeshSpec(tuple(m.ranks), m.ulysses, m.ring, m.cfg) for m in request.meshes)
        try:
            self._group = runtime.join(
                _connect(request.rendezvous, aborted),
                epoch=request.epoch,
                rank=request.rank,
                world_size=request.world_size,
                meshes=meshes,
                timeout_s=request.timeout_seconds,
                device=self._device,
                interface=self._interface,
                aborted=aborted,
            )
        finally:
            self._joining = 0
        self._meshes = meshes
        log.info("rank %d of %d in epoch %d", request.rank, request.world_size, request.epoch)

    def abort(self) -> None:
        """See `Engine.abort`."""
        runtime.abort()

    def leave(self) -> None:
        """Drop the group."""
        group, self._group = self._group, None
        if group is not None:
            group.leave()

    def _joined(self) -> runtime.Group:
        if self._group is None:
            raise StaleEpoch("this node is in no group")
        return self._group


def _connect(address: str, aborted: threading.Event) -> Store:
    """A client of the store. Raises GroupLost when it cannot be reached, or on `aborted`."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + _CONNECT_S
    while True:
        try:
            store: Store = dist.TCPStore(  # type: ignore[attr-defined] # exported, but not by name
                host, int(port), is_master=False, timeout=_ATTEMPT
            )
        except RuntimeError as error:
            if aborted.is_set() or time.monotonic() > end:
                why = first_line(error)
                raise GroupLost(f"the rendezvous at {address} cannot be reached: {why}") from error
        else:
            store.set_timeout(_STORE_TIMEOUT)
            return store
