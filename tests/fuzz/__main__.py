"""`make fuzz`: malformed requests by the thousand; exits 1 if any of them did harm."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import fuzz

# A leak shows in every batch; a cache that fills, or an allocator that keeps a large job's room to
# itself, in a few.
ALLOWED_IN_MOST_BATCHES_KIB = 2 * 1024
# The cache of tensors, and some room.
ALLOWED_IN_ALL_KIB = (256 + 48) * 1024


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), seed=args.seed, count=args.requests)
    memory = report.resident_kib
    growth = statistics.median(after - before for before, after in itertools.pairwise(memory))
    leaks = growth > ALLOWED_IN_MOST_BATCHES_KIB or memory[-1] - memory[0] > ALLOWED_IN_ALL_KIB
    print(f"{report.sent} requests in {report.seconds:.0f} s, seed {args.seed}")
    for name, count in report.answers.most_common():
        print(f"  {name:20} {count}")
    print("memory in MiB:", *(kib // 1024 for kib in memory), f"(median growth {growth:.0f} KiB)")
    print(f"restarts: {report.restarts}, defects: {len(report.defects)}")
    for defect in report.defects[:20]:
        print(f"  {defect}")
    return 1 if report.defects or report.restarts or leaks else 0


if __name__ == "__main__":
    sys.exit(main())
