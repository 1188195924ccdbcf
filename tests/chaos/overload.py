"""A thousand cancelled jobs: what the processes hold afterwards is what they held before."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from coordinator.config import Limits
from ditmesh.client import Client, Progress
from ditmesh.errors import JobCancelled
from tests.chaos.jobs import recipe
from tests.chaos.site import Site, Usage

_AT_ONCE = 8
_NOISE_BYTES = 8 << 20
"""What an allocator may keep back."""
_QUARTERS = 4
_RUNS_FIRST = 5
"""Every so many-th job is cancelled at work, the others on their way in or in the queue."""


@dataclass(frozen=True)
class Growth:
    """What a process gained over the jobs. `memory_bytes`: over each quarter of them."""

    files: int
    memory_bytes: tuple[int, ...]


def cancel_jobs(site: Site, count: int, *, warm: int = Limits().kept_jobs + 1) -> dict[str, Growth]:
    """Cancel `warm` jobs, by default as many as are remembered after their end, then `count`; how
    each process grew over the latter.
    """
    _cancel(site, warm, "warm")
    held = [settled(site)]
    in_flight = site.snapshot().queue.bytes_in_flight
    for quarter in range(_QUARTERS):
        _cancel(site, count // _QUARTERS, f"cancelled-{quarter}")
        held.append(settled(site))
    # Results of earlier jobs may still be kept.
    assert site.snapshot().queue.bytes_in_flight <= in_flight
    assert held[0].keys() == held[-1].keys(), held
    return {
        name: Growth(
            held[-1][name].files - held[0][name].files,
            tuple(b[name].memory_bytes - a[name].memory_bytes for a, b in pairwise(held)),
        )
        for name in held[0]
    }


def leaks(grown: dict[str, Growth]) -> list[str]:
    """The processes that did not stay as they were, in words."""
    return [
        f"{name} has {growth.files} more files, and memory grew by {growth.memory_bytes} bytes"
        for name, growth in grown.items()
        if growth.files > 0
        or sum(growth.memory_bytes) > _NOISE_BYTES
        or growth.memory_bytes[-1] > _NOISE_BYTES // 2
    ]


def settled(site: Site) -> dict[str, Usage]:
    """What the processes hold once nothing runs and numbers have stopped to fall."""
    site.wait(lambda: _idle(site), "the end of every job")
    held = site.usage()
    for _ in range(10):
        time.sleep(0.5)
        now = site.usage()
        if all(now[name].files >= held[name].files for name in now):
            break
        held = now
    return held


def _idle(site: Site) -> bool:
    queue = site.snapshot().queue
    return not (queue.running or queue.waiting)


def _cancel(site: Site, count: int, name: str) -> None:
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        with Client(site.address) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                _cancel_one(client, f"{name}-{number}", runs=number % _RUNS_FIRST == 0)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for future in [pool.submit(work) for _ in range(_AT_ONCE)]:
            future.result()


def _cancel_one(client: Client, job_id: str, *, runs: bool) -> None:
    with client.start(**recipe(0, 200), job_id=job_id) as handle:
        if runs:
            next(event for event in handle if isinstance(event, Progress))
        handle.cancel()
        with contextlib.suppress(JobCancelled):
            handle.result()
            raise AssertionError(f"job {job_id} was not cancelled")
