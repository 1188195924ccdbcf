"""`make fuzz`: malformed requests by the thousand; exits 1 if any of them did harm."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import fuzz

# What an allocator may keep to itself after the first tenth of the run.
ALLOWED_GROWTH_KIB = 48 * 1024


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), seed=args.seed, count=args.requests)
    memory = report.resident_kib
    leaks = memory[-1] - memory[len(memory) // 10] > ALLOWED_GROWTH_KIB
    print(f"{report.sent} requests in {report.seconds:.0f} s, seed {args.seed}")
    for name, count in report.answers.most_common():
        print(f"  {name:20} {count}")
    print("memory in MiB:", *(kib // 1024 for kib in memory))
    print(f"restarts: {report.restarts}, defects: {len(report.defects)}")
    for defect in report.defects[:20]:
        print(f"  {defect}")
    return 1 if report.defects or report.restarts or leaks else 0


if __name__ == "__main__":
    sys.exit(main())
