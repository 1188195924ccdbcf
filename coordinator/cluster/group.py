"""Carries out what the group's lifecycle decides: nodes load models, join and leave."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from coordinator.cluster.forming import in_words, join_all
from coordinator.cluster.meshes import MeshPlan
from coordinator.cluster.rendezvous import Rendezvous
from coordinator.config import Timing
from coordinator.lifecycle.group import GroupMachine, GroupPhase, GroupPolicy
from coordinator.lifecycle.group_events import (
    Abort,
    BusyChanged,
    Event,
    Failed,
    Form,
    Formed,
    NodeDown,
    NodeDraining,
    NodeLoaded,
    NodeLoading,
    NodeUp,
    Tick,
    WakeAt,
)
from coordinator.lifecycle.node import Change
from coordinator.nodes import awake
from coordinator.nodes.link import NodeLink
from ditmesh import telemetry
from ditmesh.errors import InvalidMesh
from ditmesh.mesh import MeshSpec
from ditmesh.reloading import Reloading
from ditmesh.v1 import cluster_pb2
from ditmesh.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

_LEAVE_TIMEOUT_S = 10.0
# From a cold network disk.
_LOAD_TIMEOUT_S = 1800.0
_LOAD_AGAIN_S = 1.0
_LOAD_AGAIN_MAX_S = 60.0


@dataclass(frozen=True)
class FormedGroup:
    """A group that can run jobs: its members by rank, and its meshes by index."""

    epoch: int
    members: tuple[NodeLink, ...]
    meshes: tuple[MeshSpec, ...]

    def has_model(self, model: cluster_pb2.Model) -> bool:
        """Whether every member has this very model in its folder."""
        held = [member.models().get(model.name) for member in self.members]
        return all(m is not None and m.fingerprint == model.fingerprint for m in held)


class GroupManager:
    """Owns the links to the nodes and the machine; `on_change` is called after every change."""

    def __init__(
        self,
        addresses: Sequence[str],
        plan: MeshPlan,
        *,
        rendezvous: Rendezvous,
        timing: Timing,
        preload: Sequence[str] = (),
        credentials: Reloading[grpc.ChannelCredentials] | None = None,
    ) -> None:
        self.links = {
            address: NodeLink(
                address,
                silence_s=timing.silence,
                credentials=credentials,
                on_change=self._node_changed,
            )
            for address in addresses
        }
        self.formed: FormedGroup | None = None
        self.problem = ""
        self.on_change: Callable[[], None] = lambda: None
        self._plan = plan
        self._rendezvous = rendezvous
        self._timing = timing
        self._preload = tuple(preload)
        policy = GroupPolicy(plan.expected, self._usable, settle_s=timing.settle)
        self._machine = GroupMachine(policy)
        self._loop = asyncio.get_running_loop()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._load_problems: dict[str, str] = {}
        self._join_problems: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None

    @property
    def phase(self) -> GroupPhase:
        """Where the group is."""
        return self._machine.phase

    @property
    def epoch(self) -> int:
        """The newest epoch, 0 before the first."""
        return self._machine.epoch

    @property
    def accepting(self) -> bool:
        """Whether the group takes new work."""
        return self._machine.accepting

    @property
    def could_grow(self) -> bool:
        """Whether nodes wait to be taken in, which needs a moment without work."""
        return self._machine.could_grow(self._loop.time())

    @property
    def awaits_loads(self) -> bool:
        """Whether there is no group only because nodes load weights."""
        return self._machine.awaits_loads(self._loop.time())

    def left_out(self) -> dict[str, str]:
        """Nodes that answer but are kept out of the group, by address, and why."""
        now = self._loop.time()
        problems = dict(self._load_problems)
        for address, since in self._machine.loading.items():
            model = self.links[address].loading or "a model"
            problems[address] = f"left out while it loads {model}, {now - since:.0f} s so far"
        for address, until in self._machine.left_out(now).items():
            why = self._join_problems.get(address, "it kept the group from forming")
            problems[address] = f"left out for {until - now:.0f} s more, it failed to join: {why}"
        return problems

    def start(self) -> None:
        """Begin to follow the nodes."""
        for link in self.links.values():
            self._spawn(link.watch())

    async def close(self) -> None:
        """Have the nodes leave, and close the channels."""
        if self._wake is not None:
            self._wake.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.formed is not None:
            await self._leave(self.formed.epoch, self.formed.members)
        for link in self.links.values():
            await link.close()

    def set_busy(self, busy: bool) -> None:
        """Tell whether a job runs on the group: it is not re-formed under one."""
        self._handle(BusyChanged(busy))

    def report_failure(self, epoch: int, why: str, culprits: Sequence[str] = ()) -> None:
        """The group of that epoch failed to form, perhaps by the fault of some, or at its work."""
        log.warning("epoch %d failed: %s", epoch, why)
        if epoch == self._machine.epoch:
            self.problem = why
            self._join_problems.update(dict.fromkeys(culprits, why))
        before = self.left_out()
        self._handle(Failed(epoch, tuple(culprits)))
        for address, problem in self.left_out().items():
            if address not in before:
                log.error("node %s is %s", address, problem)
                telemetry.add_event("node.left_out", node=address, problem=problem)

    def _usable(self, healthy: int) -> int:
        """How many of so many healthy nodes a group can use."""
        try:
            meshes = self._plan.meshes(healthy, self._heads())
        except InvalidMesh as error:
            self.problem = error.message
            return 0
        return meshes[0].size if meshes else 0

    def _heads(self) -> int:
        """What Ulysses degrees must divide: common to all models, 0 while none is known."""
        return math.gcd(
            *(m.num_heads for link in self.links.values() for m in link.models().values())
        )

    def _node_changed(self, link: NodeLink, change: Change) -> None:
        if change is Change.LOADING:
            self._handle(NodeLoading(link.address))
            return
        if change is Change.LOADED:
            self._handle(NodeLoaded(link.address))
            return
        loading = self._loading.pop(link.address, None)
        if loading is not None:
            loading.cancel()
        self._load_problems.pop(link.address, None)
        match change:
            case Change.UP if models := self._lacks(link):
                self._loading[link.address] = self._spawn(self._load(link, models))
            case Change.UP:
                self._handle(NodeUp(link.address, link.newest_epoch))
            case Change.DRAINING:
                self._handle(NodeDraining(link.address))
            case Change.DOWN:
                self._handle(NodeDown(link.address))

    def _lacks(self, link: NodeLink) -> list[str]:
        """The models that the others have in memory, or that all begin with, and this node has
        not.
        """
        members = self.formed.members if self.formed is not None else ()
        others = (other for other in (*members, *self.links.values()) if other is not link)
        wanted = next((other.loaded for other in others if other.loaded), self._preload)
        return [name for name in wanted if name not in link.loaded]

    async def _load(self, link: NodeLink, models: Sequence[str]) -> None:
        """Have a node that came load its weights while the others work; then it can join them."""
        for attempt in itertools.count():
            try:
                for model in models:
                    async with awake.Timeout(_LOAD_TIMEOUT_S):
                        await link.stub.LoadModel(pb.LoadModelRequest(model=model))
                break
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                problem = f"left out, it cannot load its models: {in_words(error)}"
                log.error("node %s is %s", link.address, problem)
                self._load_problems[link.address] = problem
                await asyncio.sleep(min(_LOAD_AGAIN_S * 2**attempt, _LOAD_AGAIN_MAX_S))
        self._load_problems.pop(link.address, None)
        self._handle(NodeUp(link.address, link.newest_epoch))

    def _handle(self, event: Event) -> None:
        loop = asyncio.get_running_loop()
        for instruction in self._machine.handle(event, loop.time()):
            match instruction:
                case Form(epoch, members):
                    self._spawn(self._form(epoch, members))
                case Abort(epoch, members):
                    self.formed = None
                    self._spawn(self._leave(epoch, [self.links[m] for m in members]))
                case WakeAt(time):
                    if self._wake is not None:
                        self._wake.cancel()
                    self._wake = loop.call_at(time, self._handle, Tick())
        if self._machine.phase is not GroupPhase.READY:
            self.formed = None
        self.on_change()

    async def _form(self, epoch: int, members: tuple[str, ...]) -> None:
        links = tuple(self.links[m] for m in members)
        try:
            meshes = self._plan.meshes(len(links), self._heads())
        except InvalidMesh as invalid:
            # The models there are may have changed since the size was chosen.
            self.report_failure(epoch, invalid.message)
            return
        if not meshes:
            self.report_failure(epoch, "the nodes have no models any more")
            return
        with telemetry.span("group.form", epoch=epoch, ranks=len(links)) as span:
            failed = await join_all(links, epoch, meshes, self._rendezvous, self._timing)
            if failed is not None:
                span.fail(failed.error)
                if failed.loading:
                    # Nobody is to blame: the others form without them, or wait.
                    for link in failed.loading if epoch == self._machine.epoch else ():
                        link.refused_loading()
                    return
                self.report_failure(epoch, in_words(failed.error), failed.culprits)
                return
        if epoch == self._machine.epoch and self._machine.phase is GroupPhase.FORMING:
            self.formed = FormedGroup(epoch, links, meshes)
            self.problem = ""
            log.info("epoch %d formed: %s", epoch, meshes[0])
            self._handle(Formed(epoch))

    async def _leave(self, epoch: int, links: Sequence[NodeLink]) -> None:
        request = pb.LeaveGroupRequest(epoch=epoch)
        results = await asyncio.gather(
            *(link.stub.LeaveGroup(request, timeout=_LEAVE_TIMEOUT_S) for link in links),
            return_exceptions=True,
        )
        for link, result in zip(links, results, strict=True):
            if isinstance(result, BaseException):
                log.info(
                    "node %s did not leave epoch %d: %s", link.address, epoch, in_words(result)
                )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the group failed", exc_info=error)
