"""Where the time of a job goes: by the spans of its trace, and by a profile of two processes."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench import jobs
from bench.accounting import Account, account
from bench.cluster import BenchCluster
from bench.jobs import Case
from bench.measure import Contestant, Options, alternate, timed
from bench.results import Comparison, Goal, SuiteResult, Table
from ditmesh import telemetry
from ditmesh.client import Client
from ditmesh.telemetry import TelemetryConfig

TITLE = "Where the time goes"

_STEP_MS = 60
_LEAST_SHARE = 0.98
_MOST_SHARE = 0.2
_PROFILE_S = 6
_WRITTEN_S = 20.0
_FRAMES = 12


def run(options: Options) -> SuiteResult:
    """Measure."""
    models = jobs.write_models(options.folder, (0, _STEP_MS))
    spans = options.folder / "spans.jsonl"
    cases = {
        f"synthetic, {_STEP_MS} ms a step": jobs.synthetic_case(options.folder, _STEP_MS),
        "pixel-portraits": jobs.demo_case(options.folder),
    }
    tables, goals = [], []
    with (
        BenchCluster(options.folder, models, nodes=options.ranks, trace_file=spans) as cluster,
        _traced(spans),
    ):
        for title, case in cases.items():
            found = [
                _one_job(cluster, case.client_job(seed), spans)
                for seed in range(options.rounds(5, 2) + 1)
            ][1:]
            tables.append(_table(title, found))
            goals += _goals(title, found)
    with BenchCluster(options.folder, models, nodes=options.ranks) as cluster:
        profiles = _profile(cluster, options)
    cost = _cost_of_tracing(options, models)
    return SuiteResult([cost], [*tables, *profiles], goals)


@contextmanager
def _traced(spans: Path) -> Iterator[None]:
    telemetry.setup(TelemetryConfig("client", exporters=("file",), trace_file=spans))
    try:
        yield
    finally:
        telemetry.shutdown()


def _one_job(cluster: BenchCluster, job: dict[str, object], spans: Path) -> Account:
    with Client(cluster.address) as client:
        client.cluster()  # connects
        result = client.sample(**job)  # type: ignore[arg-type] # options by name
    trace_id = result.summary.trace_id
    end = time.monotonic() + _WRITTEN_S
    while True:
        lines = spans.read_text().splitlines()
        found = [json.loads(line) for line in lines if trace_id in line and line.endswith("}")]
        # The client's own span ends last, and is written some time after.
        if any(s["service"] == "client" and "/" in s["name"] for s in found):
            time.sleep(1.5)
            lines = spans.read_text().splitlines()
            return account([json.loads(line) for line in lines if trace_id in line])
        if time.monotonic() > end:
            raise TimeoutError(f"the spans of trace {trace_id} do not come")
        time.sleep(0.1)


def _table(title: str, accounts: list[Account]) -> Table:
    names = {name for found in accounts for name in found.by_name}
    shares = {
        name: median(found.by_name.get(name, 0) / found.total for found in accounts)
        for name in names
    }
    rows: list[list[str | float]] = [
        [name, 1e-6 * share * median(found.total for found in accounts), f"{100 * share:.1f} %"]
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    unexplained = median(1 - found.share for found in accounts)
    rows.append(
        [
            "(in no span)",
            1e-6 * unexplained * median(found.total for found in accounts),
            f"{100 * unexplained:.1f} %",
        ]
    )
    return Table(f"Time of one job by span, {title}", ("span", "ms", "share"), rows)


def _goals(title: str, accounts: list[Account]) -> list[Goal]:
    share = median(found.share for found in accounts)
    worst = sorted(
        (found.largest_but_the_transformer() for found in accounts), key=lambda item: item[1]
    )[len(accounts) // 2]
    return [
        Goal(
            f"time of a job that spans account for, {title}",
            share,
            _LEAST_SHARE,
            "of 1",
            at_least=True,
        ),
        Goal(
            f"largest span but the transformer's ({worst[0]}), {title}",
            worst[1],
            _MOST_SHARE,
            "of 1",
        ),
    ]


def _cost_of_tracing(options: Options, models: Path) -> Comparison:
    """The same job on a cluster that records spans and on one that does not."""
    case = jobs.synthetic_case(options.folder, 0)
    spans = options.folder / "cost.jsonl"
    contestants: dict[str, Contestant] = {}
    seeds = itertools.count()
    with ExitStack() as stack:
        for name, file in (("without", None), ("ditmesh, spans to a file", spans)):
            cluster = stack.enter_context(
                BenchCluster(options.folder, models, nodes=options.ranks, trace_file=file)
            )
            contestants[name] = timed(_sample_next, cluster.client, case, seeds)
        series = alternate(contestants, options.rounds(15, 3), warmups=2)
    title = f"recording spans, {case.steps} steps of 0 ms"
    return Comparison(title, "ms a job", series, baseline="without")


def _sample_next(client: Client, case: Case, seeds: Iterator[int]) -> None:
    client.sample(**case.client_job(next(seeds)))


def _profile(cluster: BenchCluster, options: Options) -> list[Table]:
    """Functions in which the coordinator and the leader spend processor time, by py-spy."""
    program = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    if not Path(program).exists():
        return []
    pids = cluster.pids()
    case = jobs.synthetic_case(options.folder, 0)
    stop = threading.Event()

    def work() -> None:
        seed = 0
        while not stop.is_set():
            cluster.client.sample(**case.client_job(seed))
            seed += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        return [_recorded(program, name, pids[name], options) for name in ("coordinator", "rank0")]
    finally:
        stop.set()
        worker.join()


def _recorded(program: str, name: str, pid: int, options: Options) -> Table:
    """A recording of what is on a processor; the flame graph goes beside the results."""
    folder = options.folder.parent.parent
    for kind, file in (
        ("raw", folder / f"{name}.raw"),
        ("flamegraph", folder / f"profile-{name}.svg"),
    ):
        command = [program, "record", "--pid", str(pid), "--duration", str(_PROFILE_S)]
        command += ["--rate", "200", "--nonblocking", "--format", kind, "--output", str(file)]
        subprocess.run(command, check=True, capture_output=True)
    return Table(
        f"Where the {name} spends processor time, {_FRAMES} functions",
        ("function", "share of its samples"),
        top_functions((folder / f"{name}.raw").read_text(), _FRAMES),
    )


def top_functions(raw: str, count: int) -> list[list[str]]:
    """Innermost functions of py-spy's collapsed stacks, the most sampled first."""
    samples: dict[str, int] = {}
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        innermost = stack.rpartition(";")[2]
        function, _, place = innermost.partition(" (")
        file = place.rpartition(":")[0].rpartition("/")[2]
        name = f"{function} ({file})" if file else function
        samples[name] = samples.get(name, 0) + int(number)
    total = sum(samples.values()) or 1
    ranked = sorted(samples.items(), key=lambda item: -item[1])[:count]
    return [[name, f"{100 * number / total:.1f} %"] for name, number in ranked]
