"""What the service adds to the same job on the same ranks under a bare torchrun script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from bench import jobs
from bench.bare_group import BareGroup
from bench.cluster import BenchCluster
from bench.jobs import Case
from bench.measure import Contestant, Options, alternate, timed
from bench.results import Comparison, Goal, SuiteResult, Table
from bench.servers import RawConnection, Servers

TITLE = "Service overhead"

_DITMESH, _BARE, _FRESH, _RELAY = "ditmesh", "bare torchrun", "ditmesh, fresh text", "raw relay"
_STEP_MS = (0, 20, 60, 200)
_MOST_RATIO = 1.01
_MOST_MS = 10.0
_MOST_RELAYS = 1.2


def run(options: Options) -> SuiteResult:
    """Measure, with as many ranks as leave cores to the service, and with all that are wanted."""
    whole = SuiteResult()
    for ranks in sorted({options.fewer_ranks(1), options.ranks}):
        folder = options.folder / f"{ranks}-ranks"
        folder.mkdir()
        part = _with_ranks(replace(options, folder=folder, ranks=ranks))
        whole = SuiteResult(
            [*whole.comparisons, *part.comparisons],
            [*whole.tables, *part.tables],
            [*whole.goals, *part.goals],
        )
    return whole


def _with_ranks(options: Options) -> SuiteResult:
    folder, of = options.folder, f"{options.ranks} rank{'s' * (options.ranks > 1)}"
    step_ms = (0, 60) if options.quick else _STEP_MS
    models = jobs.write_models(folder, step_ms)
    preload = [jobs.DEMO_MODEL.name]
    with (
        BareGroup(folder, models, ranks=options.ranks) as bare,
        BenchCluster(folder, models, nodes=options.ranks, preload=preload) as cluster,
        Servers("sink", options.ranks) as sinks,
        Servers("relay", targets=sinks.addresses) as relay,
    ):
        bench = _Bench(cluster, bare, RawConnection(relay.addresses[0]))
        comparisons, goals = [], []
        for ms in step_ms:
            case = jobs.synthetic_case(folder, ms)
            comparison = bench.compare(case, f"{of}, {case.steps} steps of {ms} ms", options)
            comparisons.append(comparison)
            goals += _goals(comparison, ms)
        demo = jobs.demo_case(folder)
        title = f"{of}, pixel-portraits, {demo.steps} steps"
        comparisons.append(bench.compare(demo, title, options))
        fresh, goal = bench.fresh(jobs.synthetic_case(folder, 0), of, options)
        agreement = bench.agreement(demo, of, folder)
    return SuiteResult([*comparisons, fresh], [agreement], [*goals, goal])


class _Bench:
    def __init__(self, cluster: BenchCluster, bare: BareGroup, relay: RawConnection) -> None:
        self._client = cluster.client
        self._bare = bare
        self._relay = relay
        self._seed = 0

    def compare(self, case: Case, title: str, options: Options) -> Comparison:
        contestants = {
            _BARE: lambda: self._bare.run(case.bare_job(self._next_seed())),
            _DITMESH: self._cached(case),
        }
        rounds = options.rounds(7, 3)
        series = alternate(contestants, rounds)
        return Comparison(title, "ms a job", series, baseline=_BARE)

    def fresh(self, case: Case, of: str, options: Options) -> tuple[Comparison, Goal]:
        """The same job with a text that the cluster has not seen, and what its bytes cost alone."""
        nbytes = sum(tensor.spec.nbytes for tensor in case.conditioning.wire.values())
        payload = bytes(nbytes)

        def relay() -> None:
            self._relay.send(payload)
            self._relay.answer()

        def fresh() -> float:
            # Made before the clock starts: what is measured begins with the client's call.
            conditioning = jobs.fresh_conditioning(self._next_seed())
            job = case.client_job(self._next_seed(), positive=conditioning)
            return timed(lambda: self._client.sample(**job))()

        contestants: dict[str, Contestant] = {
            _RELAY: timed(relay),
            _DITMESH: self._cached(case),
            _FRESH: fresh,
        }
        title = f"{of}, fresh conditioning of {nbytes / 2**20:.1f} MiB, {case.steps} steps of 0 ms"
        series = alternate(contestants, options.rounds(11, 5))
        comparison = Comparison(title, "ms a job", series, baseline=_DITMESH)
        added = comparison.difference(_FRESH) / median(series[_RELAY])
        return comparison, Goal(
            f"{of}: fresh conditioning, over a raw relay", added, _MOST_RELAYS, "x"
        )

    def agreement(self, case: Case, of: str, folder: Path) -> Table:
        """Whether both made the same picture, in bf16, and what bf16 alone changes."""
        saved = folder / "bare.npy"
        self._bare.run(case.bare_job(7, save=saved))
        theirs = np.load(saved)
        ours = self._client.sample(**case.client_job(7)).latent
        exact = jobs.reference(case, 7)
        rows: list[list[str | float]] = [
            [f"{first}, {second}", f"{100 * _difference(a, b):.2f} %"]
            for first, second, a, b in (
                (_DITMESH, "one process in fp32", ours, exact),
                (_BARE, "one process in fp32", theirs, exact),
                (_DITMESH, _BARE, ours, theirs),
            )
        ]
        title = f"{of} in bf16, rms difference of pixel-portraits' latents"
        return Table(title, ["between", "difference"], rows)

    def _cached(self, case: Case) -> Contestant:
        return timed(lambda: self._client.sample(**case.client_job(self._next_seed())))

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed


def _difference(latent: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((latent - other) ** 2).mean() / (other**2).mean()))


def _goals(comparison: Comparison, step_ms: int) -> list[Goal]:
    if step_ms == 0:
        added = comparison.difference(_DITMESH)
        return [Goal(f"{comparison.title}: added by the service", added, _MOST_MS, "ms")]
    if step_ms == 60:
        ratio = comparison.ratio(_DITMESH)
        return [Goal(f"{comparison.title}: over the bare script", ratio, _MOST_RATIO, "x")]
    return []
