"""`python -m tests.chaos`: faults by seed against a cluster of real processes."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import jobs, overload, report
from tests.chaos.faults import FAULTS
from tests.chaos.run import Chaos, Report
from tests.chaos.site import Site


def main() -> int:
    """Run it; 0 when enough faults hit and nothing was lost, wrong or leaked."""
    args = _arguments()
    # So that whoever ends it early leaves no cluster behind, and still gets a report.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    kinds = [f for f in FAULTS if args.only in f.name]
    hit, beside = jobs.plan(
        args.seed, jobs=args.jobs, faults=args.faults, kinds=kinds, steps=args.steps
    )
    started = time.monotonic()
    reports: list[Report] = []
    outcome = report.Outcome(args.seed, args.ranks, reports, 0.0)
    with tempfile.TemporaryDirectory(prefix="ditmesh-chaos-") as folder:
        try:
            with Site(Path(folder), ranks=args.ranks) as site:
                chaos = Chaos(site, steps=args.steps, tell=_tell)
                chaos.reports = reports
                chaos.sample_references()
                _tell("undisturbed runs are done")
                chaos.run(hit, beside)
                if args.cancelled:
                    site.wait(site.whole, "the whole group")
                    grown = overload.cancel_jobs(site, args.cancelled)
                    outcome.leaks += overload.leaks(grown)
                    outcome.overload = {
                        "cancelled": args.cancelled,
                        **{name: vars(growth) for name, growth in grown.items()},
                    }
        except AssertionError as left:
            outcome.leaks.append(str(left))
        finally:
            outcome.seconds = time.monotonic() - started
            report.save(outcome, args.out)
            print(report.text(outcome), flush=True)
    return 0 if outcome.good and len(outcome.faults) >= args.faults else 1


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--faults", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--ranks", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=24, help="of most jobs; default: %(default)s")
    parser.add_argument(
        "--cancelled", type=int, default=1000, help="jobs to cancel at the end (%(default)s)"
    )
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="folder of the report")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
