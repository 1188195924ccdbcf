"""The command line: run suites, save their results, write docs/performance.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import machine, suites
from bench.measure import Options, Skipped
from bench.results import Comparison, Report, SuiteResult


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    args = _parser().parse_args()
    results = args.out / "results.json"
    if args.keep and not results.exists():
        print(f"--keep: there is no earlier run in {results}; leave it out", file=sys.stderr)
        return 2
    if not args.report:
        report = measure(args)
        report.save(results)
        print(f"wrote {results}")
    if args.report or args.keep or not args.suites:
        from bench import document

        for path in document.write(Report.load(results)):
            print(f"wrote {path}")
    return 0


def measure(args: argparse.Namespace) -> Report:
    """Run the suites, one after another; what fails ends the run."""
    report = Report(
        machine=machine.describe(),
        options={"reps": args.reps, "ranks": args.ranks, "quick": args.quick, "small": args.small},
    )
    found: dict[str, SuiteResult] = {}
    if args.keep:
        found.update(Report.load(args.out / "results.json").suites)
    for name in args.suites or suites.NAMES:
        suite = suites.suite(name)
        print(f"== {suite.TITLE}", flush=True)
        started = time.monotonic()
        folder = args.out / "logs" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = Options(folder.resolve(), args.reps, args.ranks, args.quick, args.small)
        try:
            result = suite.run(options)
        except Skipped as reason:
            result = SuiteResult(skipped=str(reason))
        result = replace(result, seconds=round(time.monotonic() - started, 1))
        found[name] = result
        _tell(result)
    return replace(report, suites=found)


def _tell(result: SuiteResult) -> None:
    if result.skipped:
        print(f"skipped: {result.skipped}")
    for comparison in result.comparisons:
        _tell_comparison(comparison)
    for table in result.tables:
        print(f"-- {table.title}")
        for row in (table.header, *table.rows):
            print("   " + "  ".join(str(cell).ljust(20) for cell in row).rstrip())
    for goal in result.goals:
        sign = ">=" if goal.at_least else "<="
        verdict = "met" if goal.met else "NOT MET"
        print(f"goal {verdict}: {goal.what}: {goal.measured:.3g} {sign} {goal.limit:g} {goal.unit}")
    print(f"   {result.seconds:.0f} s", flush=True)


def _tell_comparison(comparison: Comparison) -> None:
    from bench.document import comparison_rows

    print(f"-- {comparison.title}, {comparison.unit}")
    for row in comparison_rows(comparison):
        print("   " + "  ".join(cell.ljust(22 if i == 0 else 16) for i, cell in enumerate(row)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", choices=[[], *suites.NAMES], help="which suites (default: all)"
    )
    parser.add_argument("--reps", type=int, default=0, help="rounds (default: as suites think)")
    parser.add_argument("--ranks", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a look: fewer rounds and cases")
    parser.add_argument("--small", action="store_true", help="a shorter endurance run")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="default: %(default)s")
    parser.add_argument(
        "--keep", action="store_true", help="keep what the last run found of the other suites"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write docs/performance.md again"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
