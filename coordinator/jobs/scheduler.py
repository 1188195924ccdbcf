"""The queue: whoever wants an executor claims one, and the ladder says which and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.cluster.cluster import Cluster
from coordinator.executors.executor import Executor
from coordinator.lifecycle.ladder import Decision, JobFacts, Policy, Rung, decide
from coordinator.lifecycle.turns import Turn
from ditmesh.errors import DeadlineExceeded, Overloaded, Unavailable

_RETRY_AFTER_S = 5.0
_LOCAL_QUEUE = 16


@dataclass(frozen=True, eq=False)
class Grant:
    """An executor to work on. `decision` says why it is not the group, if it is not."""

    executor: Executor
    turn: Turn
    decision: Decision


@dataclass(eq=False)
class Claim:
    """A wish for an executor, for one job or one transformer call.

    `cells`: latent cells of the batch; `deadline` is on the loop's clock.
    """

    model: str
    policy: Policy
    cells: int
    steps_left: int
    deadline: float | None = None
    split: bool = False
    group_excluded: str = ""
    on_position: Callable[[int], None] = lambda position: None
    on_next: Callable[[Executor | None], None] = lambda executor: None
    """Called with the executor that it will have next, if all goes on as it does; None: no more."""
    on_group_free: Callable[[], None] = lambda: None
    """Called while the work runs locally only for want of a group, once the group is free and
    would be faster."""
    alone: bool = False
    """Whether it wants an executor on which nothing of other work is left, and does not line up."""
    waits_locally: bool = False
    """Whether it has a place in the local sampler's queue. Work that has begun is never refused
    one."""
    granted: asyncio.Future[Grant] = field(default_factory=asyncio.Future)
    told: int | None = None
    """The position that `on_position` heard last."""


class Scheduler:
    """First come, first served, for each executor. Everything happens on the event loop."""

    def __init__(
        self, cluster: Cluster, *, regroup_wait_s: float, local_queue: int = _LOCAL_QUEUE
    ) -> None:
        """`local_queue`: how many may wait for the local sampler."""
        self._local_queue = local_queue
        self._cluster = cluster
        self._regroup_wait_s = regroup_wait_s
        self._waiting: list[Claim] = []
        self._exiled: dict[Grant, Claim] = {}
        self._next: Claim | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._pump_due = False
        cluster.on_change = self._pump_soon

    @property
    def waiting(self) -> int:
        """Claims that wait."""
        return len(self._waiting)

    def position(self, claim: Claim) -> int:
        """Claims before this one, at work or waiting; 0 for one that has its executor."""
        if claim not in self._waiting:
            return 0
        return self._waiting.index(claim) + self._cluster.at_work

    async def acquire(self, claim: Claim, *, first: bool = False) -> Grant:
        """Wait for an executor; `first` puts the claim before all others.

        Raises Unavailable when nothing can or may take it, Overloaded when too many wait for the
        local sampler, which alone could, and DeadlineExceeded when that would be too late.
        Cancelling the wait withdraws the claim.
        """
        claim.waits_locally = first
        self._waiting.insert(0 if first else len(self._waiting), claim)
        self.pump()
        try:
            return await claim.granted
        except asyncio.CancelledError:
            answered = claim.granted.done() and not claim.granted.cancelled()
            if answered and claim.granted.exception() is None:
                # Granted in the same moment: nobody will use it.
                self.release(claim.granted.result())
            raise
        finally:
            if claim in self._waiting:
                self._waiting.remove(claim)
                self.pump()

    def hand_on(self, grant: Grant) -> None:
        """The work is about to end: the next claim has the executor, and lines up behind it.

        Only for work that all members have in hand, so that none of them can begin with what
        comes after it. Not while a claim waits for an executor to itself: others would line up
        before it again and again.
        """
        if any(claim.alone for claim in self._waiting):
            return
        self._cluster.hand_on(grant.executor, grant.turn)

    def release(self, grant: Grant) -> None:
        """The work is over; the next claim moves up, unless it has already."""
        self._exiled.pop(grant, None)
        self._cluster.give_back(grant.executor, grant.turn)

    def pump(self) -> None:
        """Give every claim that can move its executor. Called whenever anything changes."""
        for claim in list(self._waiting):
            if not claim.granted.done():
                self._consider(claim)
        decided = [claim for claim in self._waiting if claim.granted.done()]
        self._waiting = [claim for claim in self._waiting if not claim.granted.done()]
        for claim in (*decided, *self._waiting):
            position = self.position(claim)
            if position != claim.told and (position or claim.told):
                claim.told = position
                claim.on_position(position)
        self._announce_next()
        if not self._waiting:
            self._call_back()

    def _announce_next(self) -> None:
        """Whoever has the group after the work that is on it now can make ready meanwhile."""
        upcoming = next((claim for claim in self._waiting if self._waits_for_turn(claim)), None)
        if self._next is not None and self._next is not upcoming and self._next in self._waiting:
            self._next.on_next(None)
        self._next = upcoming
        if upcoming is not None:
            upcoming.on_next(self._cluster.group_executor(split=upcoming.split))

    def _waits_for_turn(self, claim: Claim) -> bool:
        """Whether nothing but the work on the group keeps it from having it."""
        model = self._cluster.models().get(claim.model)
        group = self._cluster.group_facts(model, alone=claim.alone)
        wants = claim.policy is not Policy.LOCAL_ONLY and not claim.group_excluded
        return wants and group.ready and group.has_model and not group.free

    def _call_back(self) -> None:
        """Nobody waits: work that only lacked a group may have it now."""
        for claim in self._exiled.values():
            model = self._cluster.models().get(claim.model)
            group = self._cluster.group_facts(model)
            if group.ready and group.free and group.has_model:
                if self._cluster.group_is_faster(claim.model):
                    claim.on_group_free()
                return

    def _pump_soon(self) -> None:
        """Pump once, after whatever is going on: changes come in bursts and from within pumps."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._pump_due = False
        self.pump()

    def _consider(self, claim: Claim) -> None:
        now = asyncio.get_running_loop().time()
        model = self._cluster.models().get(claim.model)
        group = self._cluster.group_facts(model, alone=claim.alone)
        local = self._cluster.local_facts(model, claim.cells, claim.steps_left, alone=claim.alone)
        local = replace(local, full=self._local_is_full(claim))
        decision = decide(
            JobFacts(
                claim.policy,
                None if claim.deadline is None else claim.deadline - now,
                claim.group_excluded,
            ),
            group,
            local,
            regroup_wait_s=self._regroup_wait_s,
        )
        if decision.rung is Rung.WAIT and decision.reason:
            claim.waits_locally = True
        match decision.rung:
            case Rung.GROUP:
                taken = self._cluster.take_group(split=claim.split)
                claim.granted.set_result(Grant(*taken, decision))
            case Rung.LOCAL:
                grant = Grant(*self._cluster.take_local(), decision)
                if claim.policy is not Policy.LOCAL_ONLY and not claim.group_excluded:
                    self._exiled[grant] = claim
                claim.granted.set_result(grant)
            case Rung.REFUSE if decision.reason == "TOO_SLOW":
                claim.granted.set_exception(DeadlineExceeded(decision.message))
            case Rung.REFUSE if decision.reason == "LOCAL_QUEUE_FULL":
                claim.granted.set_exception(
                    Overloaded(decision.message, retry_after_s=_RETRY_AFTER_S)
                )
            case Rung.REFUSE:
                claim.granted.set_exception(
                    Unavailable(decision.message, retry_after_s=_RETRY_AFTER_S)
                )
            case Rung.WAIT if decision.reason and local.returning:
                self._look_again(self._cluster.local_wait_s())
            case Rung.WAIT if not group.ready:
                self._look_again(group.waits_on_s(self._regroup_wait_s))

    def _local_is_full(self, claim: Claim) -> bool:
        waiting = sum(c.waits_locally for c in self._waiting if not c.granted.done())
        return not claim.waits_locally and waiting >= self._local_queue

    def _look_again(self, seconds: float) -> None:
        """Pump once this time has passed, or the shorter time that another claim asked for."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, 0.05)
        if self._wake is not None and self._wake.when() > loop.time():
            if self._wake.when() <= at:
                return
            self._wake.cancel()
        self._wake = loop.call_at(at, self.pump)
