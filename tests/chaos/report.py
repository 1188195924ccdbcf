"""The outcome of a run, as JSON and as a table; a run may have been made in parts."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.run import TOLERANCE, Report


@dataclass
class Outcome:
    """A whole run."""

    seed: int
    ranks: int
    reports: list[Report] = field(default_factory=list)
    seconds: float = 0.0
    leaks: list[str] = field(default_factory=list)
    overload: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[Report]:
        """Of the jobs whose fault counted."""
        return [report for report in self.reports if report.counted]

    @property
    def lost(self) -> list[Report]:
        """Jobs whose client got no latent."""
        return [report for report in self.reports if report.lost]

    @property
    def wrong(self) -> list[Report]:
        """Jobs whose client got another latent."""
        return [report for report in self.reports if report.wrong]

    @property
    def good(self) -> bool:
        """Nothing lost, nothing wrong, nothing leaked."""
        return not (self.lost or self.wrong or self.leaks)


def save(outcome: Outcome, folder: Path, part: tuple[int, int]) -> Outcome:
    """Keep this part of a run, and write `chaos.json` and `chaos.md` of all parts that are there;
    what they say together.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    number, of = part
    for old in parts.glob("*.json"):
        if not old.stem.endswith(f"-of-{of}") or not old.stem.startswith(f"{outcome.seed}-"):
            old.unlink()  # another run's
    file = parts / f"{outcome.seed}-part-{number}-of-{of}.json"
    file.write_text(json.dumps(asdict(outcome)))
    whole = Outcome(outcome.seed, outcome.ranks)
    for file in sorted(parts.glob("*.json")):
        read = json.loads(file.read_text())
        whole.reports += [Report(**report) for report in read["reports"]]
        whole.seconds += read["seconds"]
        whole.leaks += read["leaks"]
        whole.overload |= read["overload"]
    summary = {
        "parts": len(list(parts.glob("*.json"))),
        "counted": len(whole.faults),
        "lost": len(whole.lost),
        "wrong": len(whole.wrong),
        "tolerance": TOLERANCE,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        **asdict(whole),
    }
    (folder / "chaos.json").write_text(json.dumps(summary, indent=1))
    (folder / "chaos.md").write_text(text(whole))
    return whole


def text(outcome: Outcome) -> str:
    """The run for people: totals, then a line for each kind of fault."""
    worst = max((r.difference for r in outcome.reports if not r.lost), default=0.0)
    lines = [
        f"seed {outcome.seed}, {outcome.ranks} ranks on {os.cpu_count()} cores: "
        f"{len(outcome.reports)} jobs, {len(outcome.faults)} faults between first and last step, "
        f"{len(outcome.lost)} lost, {len(outcome.wrong)} wrong (largest difference {worst:.1e}), "
        f"{len(outcome.leaks)} leaks, {outcome.seconds:.0f} s",
        *(f"leaked: {leak}" for leak in outcome.leaks),
        *([f"overload: {outcome.overload}"] if outcome.overload else []),
        "",
        "| fault | times | cost: median | worst | steps repeated: most | answered by |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted({report.fault for report in outcome.faults}):
        of = [r for r in outcome.faults if r.fault == name]
        costs = [r.cost_s for r in of]
        rungs = Counter(r.rung or "nobody" for r in of).most_common(3)
        lines.append(
            f"| {name} | {len(of)} | {statistics.median(costs):.2f} s | {max(costs):.2f} s | "
            f"{max(r.repeated_steps for r in of)} | "
            f"{'; '.join(f'{rung} ({count})' for rung, count in rungs)} |"
        )
    lines += ["", *_noticed(outcome)]
    return "\n".join(lines) + "\n"


def _noticed(outcome: Outcome) -> list[str]:
    """How soon the coordinator knew that a process was dead, by the times in its log."""
    lines = ["| killed process noticed | times | after: median | worst |", "|---|---|---|---|"]
    for name in sorted({report.fault for report in outcome.faults}):
        after = [r.noticed_s for r in outcome.faults if r.fault == name and r.noticed_s is not None]
        if after:
            median = statistics.median(after)
            lines.append(f"| {name} | {len(after)} | {median:.3f} s | {max(after):.3f} s |")
    return lines
