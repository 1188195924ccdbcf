"""What the service adds to the same job on the same ranks under a bare torchrun script."""

from __future__ import annotations

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
    """Measure."""
    folder = options.folder
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
            comparison = bench.compare(case, f"{case.steps} steps of {ms} ms", options)
            comparisons.append(comparison)
            goals += _goals(comparison, ms)
        demo = jobs.demo_case(folder)
        title = f"pixel-portraits, {demo.steps} steps"
        comparisons.append(bench.compare(demo, title, options))
        fresh, goal = bench.fresh(jobs.synthetic_case(folder, 0), options)
        agreement = bench.agreement(demo, folder)
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
        rounds = options.rounds(11, 3)
        series = alternate(contestants, rounds)
        return Comparison(title, "ms a job", series, baseline=_BARE)

    def fresh(self, case: Case, options: Options) -> tuple[Comparison, Goal]:
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
        title = f"fresh conditioning of {nbytes / 2**20:.1f} MiB, {case.steps} steps of 0 ms"
        series = alternate(contestants, options.rounds(21, 5))
        comparison = Comparison(title, "ms a job", series, baseline=_DITMESH)
        added = comparison.difference(_FRESH) / median(series[_RELAY])
        return comparison, Goal("fresh conditioning, over a raw relay", added, _MOST_RELAYS, "x")

    def agreement(self, case: Case, folder: Path) -> Table:
        """Whether both made the same picture: bf16, and two attention paths."""
        saved = folder / "bare.npy"
        self._bare.run(case.bare_job(7, save=saved))
        theirs = np.load(saved)
        ours = self._client.sample(**case.client_job(7)).latent
        difference = float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))
        rows = [["pixel-portraits", f"{100 * difference:.2f} %"]]
        return Table(
            "Difference of the two latents, rms, both in bf16", ["job", "difference"], rows
        )

    def _cached(self, case: Case) -> Contestant:
        return timed(lambda: self._client.sample(**case.client_job(self._next_seed())))

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed


def _goals(comparison: Comparison, step_ms: int) -> list[Goal]:
    if step_ms == 0:
        added = comparison.difference(_DITMESH)
        return [Goal(f"{comparison.title}: added by the service", added, _MOST_MS, "ms")]
    if step_ms == 60:
        ratio = comparison.ratio(_DITMESH)
        return [Goal(f"{comparison.title}: over the bare script", ratio, _MOST_RATIO, "x")]
    return []
