"""`python -m deploy.check [--install]`: exit code 0 when nothing is wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from deploy.check import manifests, monitoring, pod_rules, rules, schemas, tools


def main(argv: Sequence[str] | None = None) -> int:
    """Check every overlay; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.check", description="Checks what is deployed, offline."
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="put kubectl and promtool beside Python's programs if they are not there, and stop",
    )
    args = parser.parse_args(argv)
    try:
        if args.install:
            tools.install()
            return 0
        return 1 if check() else 0
    except tools.ToolMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check() -> int:
    """Check every overlay and job, one line each; returns how many problems there are."""
    overlays, jobs = manifests.overlays(), manifests.jobs()
    count = 0
    for folder in (*overlays, *jobs):
        started = time.monotonic()
        try:
            found = problems(manifests.build(folder), whole=folder in overlays)
        except manifests.BuildFailed as error:
            found = [str(error)]
        seconds = time.monotonic() - started
        print(f"{folder.name}: {len(found) or 'no'} problems, {seconds:.1f} s")
        for problem in found:
            print(f"  {problem}")
        count += len(found)
    versions = ", ".join(schemas.VERSIONS)
    print(f"{len(overlays)} overlays, Kubernetes {versions}: {count or 'no'} problems")
    return count


def problems(built: list[manifests.Manifest], *, whole: bool) -> list[str]:
    """What is wrong with built manifests; `whole`: they are all that there is."""
    found = [*schemas.problems(built)]
    if whole:
        return [*found, *rules.problems(built), *monitoring.problems(built)]
    alone = (pod_rules.pods_are_restricted, pod_rules.images_are_pinned)
    return [*found, *(problem for rule in alone for problem in rule(built))]


if __name__ == "__main__":
    sys.exit(main())
