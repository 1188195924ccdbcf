"""`python -m tests.chaos`: faults by seed against a cluster of real processes."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import jobs, overload, report
from tests.chaos.faults import FAULTS
from tests.chaos.jobs import Planned
from tests.chaos.run import Chaos
from tests.chaos.site import Site


def main() -> int:
    """Run it; 0 when enough faults hit and nothing was lost, wrong or leaked."""
    args = _arguments()
    # So that whoever ends it early leaves no cluster behind, and still gets a report.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    kinds = [f for f in FAULTS if args.only in f.name]
    hit, beside = (
        _part(planned, args.part)
        for planned in jobs.plan(
            args.seed, jobs=args.jobs, faults=args.faults, kinds=kinds, steps=args.steps
        )
    )
    started = time.monotonic()
    outcome = report.Outcome(args.seed, args.ranks)
    with tempfile.TemporaryDirectory(prefix="ditmesh-chaos-") as folder:
        try:
            with Site(Path(folder), ranks=args.ranks) as site:
                chaos = Chaos(site, steps=args.steps, tell=_tell)
                chaos.reports = outcome.reports
                chaos.sample_references()
                _tell("undisturbed runs are done")
                chaos.run(hit, beside)
                if args.cancelled and args.part[0] == args.part[1]:
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
            whole = report.save(outcome, args.out, args.part)
            print(report.text(whole), flush=True)
    return 0 if outcome.good and len(outcome.faults) >= len(hit) else 1


def _part(planned: Sequence[Planned], part: tuple[int, int]) -> list[Planned]:
    number, of = part
    return list(planned[len(planned) * (number - 1) // of : len(planned) * number // of])


def _part_of(text: str) -> tuple[int, int]:
    """An argparse type: K/N."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N, such as 2/4")
    return int(number), int(of)


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
    parser.add_argument(
        "--part",
        type=_part_of,
        default=(1, 1),
        metavar="K/N",
        help="make only this part of the run; --out gathers them (default: all of it)",
    )
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path("out/chaos"), help="folder of the report")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
