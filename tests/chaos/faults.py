"""What is done to the cluster in the middle of a job. Each fault undoes itself."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.chaos.proxy import FaultProxy
from tests.chaos.site import Site

Undo = Callable[[], None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    `inject` does it and returns what undoes it, which happens after `hold_s` seconds, or when the
    job has ended if that is None. `local`: it is meant for a job on the local sampler. `kills`:
    the signal ends a process that the coordinator watches.
    """

    name: str
    inject: Callable[[Site, random.Random], Undo]
    hold_s: float | None = 0.0
    local: bool = False
    kills: bool = False


def _nothing() -> None:
    """There is nothing to undo."""


def _pid_of_rank(site: Site, rank: int) -> int:
    return next(node.pid for node in site.snapshot().nodes if node.rank == rank)


def _some_rank(site: Site, rng: random.Random) -> int:
    return rng.randrange(1, max(site.size(), 2))


def _kill_leader(site: Site, rng: random.Random) -> Undo:
    site.signal(_pid_of_rank(site, 0), signal.SIGKILL)
    return _nothing


def _kill_follower(site: Site, rng: random.Random) -> Undo:
    site.signal(_pid_of_rank(site, _some_rank(site, rng)), signal.SIGKILL)
    return _nothing


def _kill_all_ranks(site: Site, rng: random.Random) -> Undo:
    for node in site.snapshot().nodes:
        if node.rank is not None:
            site.signal(node.pid, signal.SIGKILL)
    return _nothing


def _kill_while_forming(site: Site, rng: random.Random) -> Undo:
    """Another rank dies while the survivors of the first form their group."""
    first, second = _pid_of_rank(site, 0), _pid_of_rank(site, _some_rank(site, rng))
    site.signal(first, signal.SIGKILL)
    time.sleep(rng.uniform(0.2, 0.9))
    site.signal(second, signal.SIGKILL)
    return _nothing


def _terminate_rank(site: Site, rng: random.Random) -> Undo:
    site.signal(_pid_of_rank(site, rng.randrange(max(site.size(), 1))), signal.SIGTERM)
    return _nothing


def _stop_rank(site: Site, rng: random.Random) -> Undo:
    pid = _pid_of_rank(site, rng.randrange(max(site.size(), 1)))
    site.signal(pid, signal.SIGSTOP)
    return lambda: site.signal(pid, signal.SIGCONT)


def _kill_local(site: Site, rng: random.Random) -> Undo:
    site.signal(site.local_pid(), signal.SIGKILL)
    return _nothing


def _stop_local(site: Site, rng: random.Random) -> Undo:
    pid = site.local_pid()
    site.signal(pid, signal.SIGSTOP)
    return lambda: site.signal(pid, signal.SIGCONT)


def _kill_coordinator(site: Site, rng: random.Random) -> Undo:
    site.signal(site.coordinator_pid(), signal.SIGKILL)
    return _nothing


def _terminate_coordinator(site: Site, rng: random.Random) -> Undo:
    site.signal(site.coordinator_pid(), signal.SIGTERM)
    return _nothing


def _stop_coordinator(site: Site, rng: random.Random) -> Undo:
    pid = site.coordinator_pid()
    site.signal(pid, signal.SIGSTOP)
    return lambda: site.signal(pid, signal.SIGCONT)


def _kill_coordinator_and_leader(site: Site, rng: random.Random) -> Undo:
    pid = _pid_of_rank(site, 0)
    site.signal(site.coordinator_pid(), signal.SIGKILL)
    site.signal(pid, signal.SIGKILL)
    return _nothing


def _cut_client(site: Site, rng: random.Random) -> Undo:
    site.door.cut()
    return _nothing


def _shut_door(site: Site, rng: random.Random) -> Undo:
    site.door.refuse()
    return site.door.heal


def _half_chunk_to_client(site: Site, rng: random.Random) -> Undo:
    site.door.cut_after(rng.randrange(1, 4096))
    return site.door.heal


def _slow_client(site: Site, rng: random.Random) -> Undo:
    site.door.slow(16_384.0)
    return site.door.heal


def _stall_client(site: Site, rng: random.Random) -> Undo:
    site.door.stall()
    return site.door.heal


def _any_wire(site: Site, rng: random.Random) -> FaultProxy:
    return site.wire_of(rng.randrange(max(site.size(), 1)))


def _cut_node(site: Site, rng: random.Random) -> Undo:
    _any_wire(site, rng).cut()
    return _nothing


def _half_chunk_from_leader(site: Site, rng: random.Random) -> Undo:
    wire = site.wire_of(0)
    wire.cut_after(rng.randrange(1, 16_384))
    return wire.heal


def _slow_node(site: Site, rng: random.Random) -> Undo:
    wire = site.wire_of(0)
    wire.slow(16_384.0)
    return wire.heal


def _isolate_node(site: Site, rng: random.Random) -> Undo:
    wire = _any_wire(site, rng)
    wire.stall()
    return wire.heal


def _refuse_node(site: Site, rng: random.Random) -> Undo:
    wire = _any_wire(site, rng)
    wire.refuse()
    return wire.heal


def _collector_refuses(site: Site, rng: random.Random) -> Undo:
    site.collector.refuse()
    return site.collector.heal


def _collector_hangs(site: Site, rng: random.Random) -> Undo:
    site.collector.stall()
    return site.collector.heal


def _entered(context: AbstractContextManager[None]) -> Undo:
    context.__enter__()
    return lambda: context.__exit__(None, None, None) and None


def _disk_full(site: Site, rng: random.Random) -> Undo:
    return _entered(site.full_disk())


def _disk_full_and_kill(site: Site, rng: random.Random) -> Undo:
    """The journal misses the newest states when its process dies."""
    undo = _entered(site.full_disk())
    time.sleep(rng.uniform(0.0, 0.2))
    site.signal(site.coordinator_pid(), signal.SIGKILL)
    return undo


def _clock_jumps(site: Site, rng: random.Random) -> Undo:
    site.set_clock(rng.choice([-86_400.0, -3600.0, 3600.0, 86_400.0 * 365]))
    return lambda: site.set_clock(0.0)


FAULTS = (
    Fault("kill the leading rank", _kill_leader, kills=True),
    Fault("kill another rank", _kill_follower, kills=True),
    Fault("kill every rank", _kill_all_ranks, kills=True),
    Fault("kill a rank while a group forms", _kill_while_forming),
    Fault("terminate a rank (SIGTERM)", _terminate_rank),
    Fault("pause a rank for 2 s (SIGSTOP)", _stop_rank, 2.0),
    Fault("hang a rank (SIGSTOP)", _stop_rank, None),
    Fault("kill the local sampler", _kill_local, local=True, kills=True),
    Fault("pause the local sampler for 2 s", _stop_local, 2.0, local=True),
    Fault("pause the local sampler for 7 s", _stop_local, 7.0, local=True),
    Fault("hang the local sampler (SIGSTOP)", _stop_local, None, local=True),
    Fault("kill the coordinator", _kill_coordinator),
    Fault("kill the coordinator, job on the local sampler", _kill_coordinator, local=True),
    Fault("kill coordinator and leading rank", _kill_coordinator_and_leader),
    Fault("terminate the coordinator (SIGTERM)", _terminate_coordinator),
    Fault("pause the coordinator for 3 s", _stop_coordinator, 3.0),
    Fault("cut the client's link", _cut_client),
    Fault("client's link gone for 3 s", _shut_door, 3.0),
    Fault("half a message to the client", _half_chunk_to_client, None),
    Fault("slow client link (16 KiB/s)", _slow_client, 3.0),
    Fault("client's link silent for 3 s", _stall_client, 3.0),
    Fault("cut a node's link", _cut_node),
    Fault("half a chunk from the leading rank", _half_chunk_from_leader, None),
    Fault("slow link to the leading rank (16 KiB/s)", _slow_node, 3.0),
    Fault("a node's link silent", _isolate_node, None),
    Fault("a node's link gone", _refuse_node, None),
    Fault("collector refuses", _collector_refuses, None),
    Fault("collector hangs", _collector_hangs, None),
    Fault("disk full", _disk_full, None),
    Fault("disk full, then the coordinator killed", _disk_full_and_kill, None),
    Fault("wall clock jumps", _clock_jumps, None),
)

SHORT = tuple(
    fault
    for fault in FAULTS
    if fault.name
    in {
        "kill the leading rank",
        "kill another rank",
        "pause a rank for 2 s (SIGSTOP)",
        "kill the local sampler",
        "kill the coordinator",
        "cut the client's link",
        "half a message to the client",
        "cut a node's link",
        "half a chunk from the leading rank",
        "collector refuses",
        "disk full",
        "wall clock jumps",
    }
)
"""One of each sort that is over quickly."""
