"""A group that is never idle: gaps between queued jobs, many clients at once, memory over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench import jobs, machine, synthetic
from bench.cluster import BenchCluster
from bench.measure import Options
from bench.results import Comparison, Goal, SuiteResult, Table, quantile
from coordinator.config import Limits
from ditmesh.client import Client, Conditioning
from ditmesh.client.blocking.handle import JobHandle
from ditmesh.content import MAX_TENSORS

TITLE = "A busy group"

_STEP_MS = 20
_STEPS = 5
_MOST_GAP_MS = 5.0
_MOST_GROWTH_MIB = 4.0
_ENDURANCE_JOBS, _SMALL_JOBS = 10_000, 1_000
_ENDURANCE_CLIENTS = 4
# The coordinator remembers a number of jobs that ended, for whoever comes back, and of tensors by
# their hashes, each result's latent among them: it grows until there are so many.
_WARM_JOBS = max(Limits().kept_jobs, MAX_TENSORS) + 200
_SAMPLES = 40
_MIB = 1 << 20

Call = tuple[int, int]
"""Start and end of a forward pass, ns."""


def run(options: Options) -> SuiteResult:
    """Measure."""
    models = jobs.write_models(options.folder, (0, _STEP_MS))
    calls = options.folder / "calls"
    preload = [synthetic.model_name(_STEP_MS)]
    ranks = options.fewer_ranks(2)
    with BenchCluster(options.folder, models, nodes=ranks, calls=calls, preload=preload) as cluster:
        gaps = _gaps(cluster, calls, ranks, options)
        crowd = _crowd(cluster, calls, ranks, options)
    with BenchCluster(options.folder, models, nodes=1) as cluster:
        memory, growth = _endurance(cluster, options)
    goals = [
        Goal(
            "gap between two queued jobs with fresh conditioning, median",
            median(gaps.series["between two jobs"]),
            _MOST_GAP_MS,
            "ms",
        ),
        *(
            Goal(f"memory that {name} gains over half of the endurance run", grown, limit, "MiB")
            for name, grown, limit in growth
        ),
    ]
    return SuiteResult([gaps], [crowd, memory], goals)


def _gaps(cluster: BenchCluster, calls: Path, ranks: int, options: Options) -> Comparison:
    """How long the transformer rests between jobs, and for comparison between steps."""
    between_jobs: list[float] = []
    between_steps: list[float] = []
    for round_number in range(options.rounds(4, 1) + 1):
        before = len(synthetic.read_calls(calls))
        handles: list[JobHandle] = []
        for number in range(6):
            seed = 100 * round_number + number
            case = jobs.synthetic_case(options.folder, _STEP_MS, steps=_STEPS)
            job = case.client_job(seed, positive=jobs.fresh_conditioning(1 + seed))
            handles.append(cluster.client.start(**job))
        for handle in handles:
            handle.result()
        if round_number:  # the first one warms up
            rests = _rests(synthetic.read_calls(calls)[before:])
            between_jobs += rests[_STEPS - 1 :: _STEPS]
            between_steps += [r for i, r in enumerate(rests) if (i + 1) % _STEPS]
    series = {"between two jobs": between_jobs, "between two steps": between_steps}
    return Comparison(f"the transformer's rest, {ranks} ranks", "ms", series, tail=True)


def _rests(calls: Sequence[Call]) -> list[float]:
    return [(after[0] - before[1]) / 1e6 for before, after in pairwise(sorted(calls))]


def _crowd(cluster: BenchCluster, calls: Path, ranks: int, options: Options) -> Table:
    """Clients that each send one job after another."""
    total = 24 if options.quick else 128
    rows = []
    for count in (1, 8) if options.quick else (1, 8, 64):
        before = len(synthetic.read_calls(calls))
        started = time.monotonic()
        waits = _send(cluster, options, clients=count, total=total)
        seconds = time.monotonic() - started
        busy = sum(end - start for start, end in synthetic.read_calls(calls)[before:]) / 1e9
        rows.append(
            [
                count,
                len(waits) / seconds,
                f"{100 * busy / seconds:.0f} %",
                1e3 * median(waits),
                1e3 * quantile(waits, 0.99),
            ]
        )
    header = (
        "clients",
        "jobs a second",
        "transformer at work",
        "ms a job, median",
        "ms a job, p99",
    )
    return Table(f"Jobs of {_STEPS} steps of {_STEP_MS} ms on {ranks} ranks", header, rows)


def _send(cluster: BenchCluster, options: Options, *, clients: int, total: int) -> list[float]:
    """Seconds that each job took from its client's point of view."""
    case = jobs.synthetic_case(options.folder, _STEP_MS, steps=_STEPS)
    waits: list[float] = []

    def work(place: int) -> None:
        with Client(cluster.address) as client:
            for number in range(place, total, clients):
                started = time.monotonic()
                client.sample(**case.client_job(number))
                waits.append(time.monotonic() - started)

    _together(work, clients)
    return waits


def _endurance(
    cluster: BenchCluster, options: Options
) -> tuple[Table, list[tuple[str, float, float]]]:
    """Small jobs by the thousand; memory of the coordinator and of a rank meanwhile.

    What counts is what is gained from the second quarter of them to the last.
    """
    total = _SMALL_JOBS if options.small or options.quick else _ENDURANCE_JOBS
    pids = cluster.pids()
    done = 0
    samples: list[tuple[int, dict[str, float]]] = []
    lock = threading.Lock()
    text, pooled = jobs.fresh_text(0)[:, :8], jobs.fresh_text(0)[:, 0, : synthetic.POOLED_WIDTH]

    def work(place: int) -> None:
        nonlocal done
        conditioning = Conditioning(text, pooled, 3.5)
        with Client(cluster.address) as client:
            for seed in range(place, _WARM_JOBS + total, _ENDURANCE_CLIENTS):
                client.sample(
                    model=synthetic.model_name(0),
                    positive=conditioning,
                    size=(1, 2, 2),
                    steps=1,
                    seed=seed,
                )
                with lock:
                    done += 1
                    measured = done - _WARM_JOBS
                    if measured > 0 and measured % (total // _SAMPLES) == 0:
                        held = {n: machine.resident_bytes(p) / _MIB for n, p in pids.items()}
                        samples.append((measured, held))

    _together(work, _ENDURANCE_CLIENTS)
    quarter = len(samples) // 4
    growth = []
    for name in pids:
        second = median(held[name] for _, held in samples[quarter : 2 * quarter])
        last = median(held[name] for _, held in samples[-quarter:])
        growth.append((name, last - second, _MOST_GROWTH_MIB))
    shown = samples[:: max(len(samples) // 8, 1)]
    rows = [[count, *(held[name] for name in pids)] for count, held in shown]
    header = ["jobs", *(f"{name}, MiB of its own" for name in pids)]
    title = f"Memory over {total:,} small jobs on 1 rank, after {_WARM_JOBS:,} that are remembered"
    return Table(title, header, rows), growth


def _together(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def guarded(place: int) -> None:
        try:
            work(place)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
