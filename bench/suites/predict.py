"""One transformer call over the service against a raw relay of the same bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np

from bench import jobs, machine, synthetic
from bench.cluster import BenchCluster
from bench.measure import Contestant, Options, alternate, timed
from bench.results import Comparison, Goal, SuiteResult, Table, quantile
from bench.servers import ECHO, OPTIONS, Servers
from ditmesh.client import Client

TITLE = "One Predict call"

_DITMESH, _RELAY, _AIO_RELAY = "ditmesh", "gRPC relay", "gRPC relay, asyncio"
_MOST_RATIO = 1.5
_LOAD_S = 3.0
_MACHINE_CALLS_PER_S = 1.0


def run(options: Options) -> SuiteResult:
    """Measure, with a single rank and with all."""
    models = jobs.write_models(options.folder, (0,))
    comparisons, goals, tables = [], [], []
    for ranks in dict.fromkeys((1, options.ranks)):
        with ExitStack() as stack:
            cluster = stack.enter_context(
                BenchCluster(options.folder, models, nodes=ranks, preload=[synthetic.model_name(0)])
            )
            comparison = _latency(stack, cluster, ranks, options)
            comparisons.append(comparison)
            goals += _goals(comparison)
            if ranks == 1:
                tables.append(_load(cluster, options))
    return SuiteResult(comparisons, tables, goals)


def _latency(stack: ExitStack, cluster: BenchCluster, ranks: int, options: Options) -> Comparison:
    call = _caller(stack, cluster.client)
    sinks = stack.enter_context(Servers("grpc-sink", ranks))
    data = bytes(4 * int(np.prod(synthetic.LATENT)))
    contestants: dict[str, Contestant] = {_DITMESH: timed(call)}
    for name, kind in ((_RELAY, "grpc-relay"), (_AIO_RELAY, "grpc-aio-relay")):
        relay = stack.enter_context(Servers(kind, targets=sinks.addresses))
        channel = stack.enter_context(grpc.insecure_channel(relay.addresses[0], OPTIONS))
        echo: Any = channel.unary_unary(ECHO)
        contestants[name] = timed(echo, data)
    series = alternate(contestants, options.rounds(300, 40), warmups=10)
    what = "1 rank" if ranks == 1 else f"{ranks} ranks"
    title = f"{len(data) / 2**20:.0f} MiB out and back, {what}"
    return Comparison(title, "ms a call", series, baseline=_RELAY, tail=True)


def _caller(stack: ExitStack, client: Client) -> Callable[[], Any]:
    stream = stack.enter_context(client.predict_stream(synthetic.model_name(0), fallback="forbid"))
    x = np.random.default_rng(0).standard_normal(synthetic.LATENT, dtype=np.float32)
    conditioning = jobs.fresh_conditioning(0)
    return lambda: stream.predict(x, 0.5, conditioning)


def _goals(comparison: Comparison) -> list[Goal]:
    ours, relay = comparison.series[_DITMESH], comparison.series[_RELAY]
    tail = quantile(ours, 0.99) / quantile(relay, 0.99)
    title = f"{comparison.title}: to a raw relay"
    return [
        Goal(f"{title}, p50", comparison.ratio(_DITMESH), _MOST_RATIO, "x"),
        Goal(f"{title}, p99", tail, _MOST_RATIO, "x"),
    ]


def _load(cluster: BenchCluster, options: Options) -> Table:
    """Clients that call without a pause, and what the coordinator's process spends on a call."""
    pid = cluster.pids()["coordinator"]
    rows = []
    for count in (1, 4) if options.quick else (1, 4, 16):
        calls, seconds, spent = _hammer(cluster, pid, count, 1.0 if options.quick else _LOAD_S)
        each = spent / calls
        rows.append([count, calls / seconds, 1e3 * each, 1 / (each * _MACHINE_CALLS_PER_S)])
    header = (
        "clients",
        "calls a second",
        "coordinator's CPU ms a call",
        "clients of one call a second that fill a core",
    )
    return Table("Clients on one coordinator", header, rows)


def _hammer(
    cluster: BenchCluster, pid: int, count: int, seconds: float
) -> tuple[int, float, float]:
    """Calls made, seconds that they took, and seconds of the coordinator's processor time."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(cluster.address)) for _ in range(count)]
        callers = [_caller(stack, client) for client in clients]
        for caller in callers:
            caller()
        made = [0] * count
        end = time.monotonic() + seconds

        def work(place: int) -> None:
            while time.monotonic() < end:
                callers[place]()
                made[place] += 1

        threads = [threading.Thread(target=work, args=(place,)) for place in range(count)]
        started, before = time.monotonic(), machine.cpu_seconds(pid)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(made), time.monotonic() - started, machine.cpu_seconds(pid) - before
