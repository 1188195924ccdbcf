"""A thousand cancelled jobs: what the processes hold afterwards is what they held before."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ditmesh.client import Client, Progress
from ditmesh.errors import JobCancelled
from tests.chaos.jobs import recipe
from tests.chaos.site import Site, Usage

_AT_ONCE = 8
_RUNS_FIRST = 5
"""Every so many-th job is cancelled at work, the others on their way in or in the queue."""


@dataclass(frozen=True)
class Growth:
    """What a process gained over the jobs."""

    files: int
    memory_bytes: int


def cancel_jobs(site: Site, count: int, *, warm_up: int) -> dict[str, Growth]:
    """Cancel `warm_up` jobs, then `count`; how each process grew over the latter."""
    _cancel(site, warm_up, "warm")
    before = settled(site)
    _cancel(site, count, "cancelled")
    after = settled(site)
    assert before.keys() == after.keys(), (before, after)
    return {
        name: Growth(
            after[name].files - before[name].files,
            after[name].memory_bytes - before[name].memory_bytes,
        )
        for name in before
    }


def settled(site: Site) -> dict[str, Usage]:
    """What the processes hold once nothing runs and numbers have stopped to fall."""
    site.wait(lambda: site.snapshot().queue.running == 0, "the end of every job")
    site.wait(lambda: site.snapshot().queue.bytes_in_flight == 0, "bytes to be freed")
    held = site.usage()
    for _ in range(10):
        time.sleep(0.5)
        now = site.usage()
        if all(now[name].files >= held[name].files for name in now):
            break
        held = now
    return held


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
    with client.start(**recipe(0, 2000), job_id=job_id) as handle:
        if runs:
            next(event for event in handle if isinstance(event, Progress))
        handle.cancel()
        with contextlib.suppress(JobCancelled):
            handle.result()
            raise AssertionError(f"job {job_id} was not cancelled")
