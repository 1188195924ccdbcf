"""A job's summary as text: who did which steps, how fast, and why anything fell back."""

from __future__ import annotations

from ditmesh.cli.tables import counted, table
from ditmesh.client import Segment, Summary


def describe(summary: Summary, fallback: str) -> str:
    """The summary for people; `fallback` is the policy that the job had."""
    parts = [f"job {summary.job_id}, trace {summary.trace_id or 'none: tracing is off'}"]
    rows = [
        (
            segment.executor,
            f"{segment.first_step + 1}-{segment.end_step}" if _steps(segment) else "none",
            counted(segment.ranks, "rank"),
            segment.mesh or "-",
            str(segment.epoch) if segment.epoch else "-",
            f"{segment.seconds:.2f} s",
            f"{segment.seconds / _steps(segment):.3f} s" if _steps(segment) else "-",
        )
        for segment in summary.segments
    ]
    if rows:
        header = ("executor", "steps", "ranks", "mesh", "epoch", "time", "per step")
        parts.append(table(header, rows, indent="  "))
    parts += _fallbacks(summary, fallback)
    parts.append(f"queued {summary.queue_seconds:.2f} s, ran {summary.run_seconds:.2f} s")
    return "\n".join(parts)


def _fallbacks(summary: Summary, policy: str) -> list[str]:
    if not summary.fallbacks:
        why = {
            "allow": "the job stayed where it belongs",
            "forbid": "the caller forbade it",
            "local_only": "the caller asked for the local sampler",
        }[policy]
        return [f"fallback: none, {why}"]
    lines = []
    for note in summary.fallbacks:
        again = note.repeated_steps
        repeated = f", {counted(again, 'step')} repeated" if again else ", no step repeated"
        lines.append(
            f"fallback: from {note.source} to {note.target} after step {note.at_step}{repeated}: "
            f"{note.reason}, {note.message}"
        )
    return lines


def _steps(segment: Segment) -> int:
    return segment.end_step - segment.first_step
