"""What there is to run work on: the group and the local sampler, and what each can do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from coordinator.cluster.group import FormedGroup, GroupManager
from coordinator.cluster.meshes import MAIN, SPLIT
from coordinator.executors.executor import Executor
from coordinator.lifecycle.group import GroupPhase
from coordinator.lifecycle.ladder import GroupFacts, LocalFacts
from coordinator.lifecycle.node import NodePhase
from coordinator.lifecycle.turns import Turn, Turns
from coordinator.nodes.link import NodeLink
from ditmesh.errors import Unavailable, UnknownModel
from ditmesh.v1 import cluster_pb2

_SMOOTHING = 0.3
_LEFT_OUT = "left_out"
# How long the local sampler may take to be started again: its supervisor pauses for up to 5 s.
_LOCAL_RETURNS_S = 15.0


class Cluster:
    """The executors of one coordinator. `on_change` is called when work might move."""

    def __init__(self, group: GroupManager, local: NodeLink | None, *, settle_s: float) -> None:
        """`settle_s`: how long executors may take to show up at first."""
        self._settled_at = asyncio.get_running_loop().time() + settle_s
        self.group = group
        self.local = local
        self.on_change: Callable[[], None] = lambda: None
        self._executors: dict[tuple[int, int], Executor] = {}
        self._local_executor = Executor("local", [local]) if local is not None else None
        self._turns = {"group": Turns(), "local": Turns()}
        self._group_seen_at = self._local_seen_at = asyncio.get_running_loop().time()
        self._loading_until = self._group_seen_at
        self._cell_s: dict[tuple[str, str], float] = {}
        group.on_change = self._group_changed

    @property
    def settling(self) -> bool:
        """Whether some executor may yet show up for the first time."""
        links = [*self.group.links.values(), *([self.local] if self.local else [])]
        late = any(not link.seen for link in links)
        return late and asyncio.get_running_loop().time() < self._settled_at

    def find_model(self, name: str, *, field: str) -> cluster_pb2.Model:
        """Raises UnknownModel naming those there are, or Unavailable while that may change.

        `field` is where the request has the name.
        """
        models = self.models()
        if name in models:
            return models[name]
        if self.settling:
            raise Unavailable(
                f"model {name!r} is not known yet: the cluster is starting", retry_after_s=1.0
            )
        known = ", ".join(sorted(models)) or "none"
        raise UnknownModel(f"unknown model {name!r}; this cluster serves: {known}", field=field)

    def models(self) -> dict[str, cluster_pb2.Model]:
        """Every model that some executor could run, by name. The nodes' word counts first."""
        found: dict[str, cluster_pb2.Model] = {}
        links = [*self.group.links.values(), *([self.local] if self.local else [])]
        for link in links:
            for name, model in link.models().items():
                found.setdefault(name, model)
        return found

    def local_has(self, model: cluster_pb2.Model) -> bool:
        """Whether the local sampler has this very model."""
        held = self.local.models().get(model.name) if self.local else None
        return held is not None and held.fingerprint == model.fingerprint

    def group_facts(self, model: cluster_pb2.Model | None, *, alone: bool = False) -> GroupFacts:
        """The group as a job for that model sees it; `alone`: one that does not line up."""
        formed = self.group.formed
        now = asyncio.get_running_loop().time()
        if formed is not None or self.settling:
            # It cannot be lost before it could form.
            self._group_seen_at = self._loading_until = now
        elif self.group.awaits_loads:
            self._loading_until = now
        return GroupFacts(
            configured=bool(self.group.links),
            ready=formed is not None and self.group.accepting,
            free=self._is_free("group", alone),
            forming=self.group.phase is GroupPhase.FORMING,
            has_model=formed is not None and model is not None and formed.has_model(model),
            waited_s=now - self._loading_until,
            problem=self.group.problem,
            loading_s=self._loading_until - self._group_seen_at,
        )

    def local_facts(
        self, model: cluster_pb2.Model | None, cells: int, steps_left: int, *, alone: bool = False
    ) -> LocalFacts:
        """The local sampler as a job of `cells` latent cells and `steps_left` steps sees it;
        `alone`: one that does not line up.
        """
        up = self.local is not None and self.local.up
        rate = self._cell_s.get(("local", model.name)) if model is not None else None
        return LocalFacts(
            available=up,
            free=self._is_free("local", alone),
            has_model=model is not None and self.local_has(model),
            estimate_s=None if rate is None else rate * cells * steps_left,
            problem="" if self.local is None else self.local.view.problem,
            returning=not up and self.local is not None and self.local_wait_s() > 0,
        )

    def local_wait_s(self) -> float:
        """How much longer a local sampler that is gone is waited for, in seconds."""
        elapsed = asyncio.get_running_loop().time() - self._local_seen_at
        return max(_LOCAL_RETURNS_S - elapsed, 0.0)

    def local_failed(self, why: str) -> None:
        """The local sampler could not do its work: nothing goes there until it speaks again."""
        if self.local is not None:
            self.local.doubt(why)

    def local_changed(self) -> None:
        """The local sampler came or went."""
        self._local_seen_at = asyncio.get_running_loop().time()
        self.on_change()

    def note_step(self, executor: Executor, model: str, cells: int, seconds: float) -> None:
        """Learn how fast an executor is: seconds for a step of so many latent cells."""
        rate = seconds / cells
        old = self._cell_s.get((executor.name, model), rate)
        self._cell_s[executor.name, model] = old + _SMOOTHING * (rate - old)

    def group_is_faster(self, model: str) -> bool:
        """Whether the group's steps are shorter than the local sampler's, as far as is known."""
        group = self._cell_s.get(("group", model), 0.0)
        return group < self._cell_s.get(("local", model), math.inf)

    def group_ranks(self) -> int:
        """Ranks of the group; 0 when there is none."""
        formed = self.group.formed
        return len(formed.members) if formed is not None else 0

    def nodes_by_state(self) -> dict[str, int]:
        """How many nodes are in each state, zeros included; "left_out" is one of them."""
        counts = {**{phase.value: 0 for phase in NodePhase}, _LEFT_OUT: 0}
        left_out = self.group.left_out()
        for link in self.group.links.values():
            state = _LEFT_OUT if link.address in left_out else link.view.phase.value
            counts[state] += 1
        return counts

    @property
    def at_work(self) -> int:
        """How much work is on an executor at once, of the one that has most."""
        return max(turns.there for turns in self._turns.values())

    def take_group(self, *, split: bool) -> tuple[Executor, Turn]:
        """The group's mesh for a job; `split`: it has two guidance branches."""
        executor = self.group_executor(split=split)
        if self._turns["group"].idle:
            self.group.set_busy(True)
        return executor, self._turns["group"].take()

    def group_executor(self, *, split: bool) -> Executor:
        """What `take_group` would give, without taking it."""
        formed = self.group.formed
        assert formed is not None, "the ladder gives the group only when it is ready"
        index = SPLIT if split and len(formed.meshes) > SPLIT else MAIN
        return self._executor(formed, index)

    def take_local(self) -> tuple[Executor, Turn]:
        """The local sampler."""
        assert self._local_executor is not None, "the ladder gives it only when it is there"
        return self._local_executor, self._turns["local"].take()

    def hand_on(self, executor: Executor, turn: Turn) -> None:
        """The work on it is about to end: others may line up behind it.

        Not while the group could grow: under steady load it would never be idle, and it takes
        nodes in between two jobs only.
        """
        if executor.name == "group" and self.group.could_grow:
            return
        if self._turns[executor.name].hand_on(turn):
            self.on_change()

    def give_back(self, executor: Executor, turn: Turn) -> None:
        """The work on it has ended."""
        turns = self._turns[executor.name]
        turns.give_back(turn)
        if executor.name == "group" and turns.idle:
            self.group.set_busy(False)
        self.on_change()

    def group_failed(self, executor: Executor, why: str) -> None:
        """The group could not do its work: it forms anew."""
        if self.group.formed is not None and self.group.formed.epoch == executor.epoch:
            self.group.report_failure(executor.epoch, why)

    def _is_free(self, executor: str, alone: bool) -> bool:
        turns = self._turns[executor]
        return turns.idle if alone else turns.free

    def _executor(self, formed: FormedGroup, index: int) -> Executor:
        key = (formed.epoch, index)
        if key not in self._executors:
            mesh = formed.meshes[index]
            self._executors[key] = Executor(
                "group",
                [formed.members[rank] for rank in mesh.ranks],
                epoch=formed.epoch,
                mesh_index=index,
                mesh=mesh,
            )
        return self._executors[key]

    def _group_changed(self) -> None:
        formed = self.group.formed
        if formed is None and self._executors:
            self._group_seen_at = self._loading_until = asyncio.get_running_loop().time()
            for executor in self._executors.values():
                executor.close()
            self._executors.clear()
        self.on_change()
