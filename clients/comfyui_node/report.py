"""Who made the picture: in words for the node, and as data for the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """Lines for people, and the same as JSON values."""

    lines: tuple[str, ...]
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """For the node's own face."""
        return "\n".join(self.lines)

    @classmethod
    def whole(cls, summary: Any) -> Report:
        """Of a job that the cluster did, from its `Summary`."""
        lines = [_segment(segment) for segment in summary.segments]
        lines += [_change(note) for note in summary.fallbacks]
        if summary.queue_seconds >= 0.1:
            lines.append(f"waited {summary.queue_seconds:.1f} s")
        if summary.trace_id:
            lines.append(f"trace {summary.trace_id}")
        data = {
            "sampled_by": "cluster",
            "job_id": summary.job_id,
            "trace_id": summary.trace_id,
            "run_seconds": summary.run_seconds,
            "queue_seconds": summary.queue_seconds,
            "segments": [vars(segment) for segment in summary.segments],
            "fallbacks": [vars(note) for note in summary.fallbacks],
        }
        return cls(tuple(lines), data)

    @classmethod
    def steps(
        cls, *, calls: int, seconds: float, executor: str, fallback_reason: str, reason: str
    ) -> Report:
        """Of a job whose sampler ran in ComfyUI and whose transformer on the cluster."""
        who = _who(executor) or "the cluster"
        lines = [f"step by step on {who}: {calls} calls in {seconds:.2f} s"]
        if reason:
            lines.append(f"because {reason}")
        if fallback_reason:
            lines.append(f"not the group: {fallback_reason}")
        data = {
            "sampled_by": "steps",
            "calls": calls,
            "run_seconds": seconds,
            "executor": executor,
            "fallback_reason": fallback_reason,
            "reason": reason,
        }
        return cls(tuple(lines), data)

    @classmethod
    def comfyui(cls, *, seconds: float, reason: str) -> Report:
        """Of a job that the cluster had no part in."""
        lines = (f"sampled by ComfyUI itself in {seconds:.2f} s", f"because {reason}")
        return cls(lines, {"sampled_by": "comfyui", "run_seconds": seconds, "reason": reason})


def _who(executor: str) -> str:
    return {"group": "the GPU group", "local": "the coordinator's own sampler"}.get(executor, "")


def _segment(segment: Any) -> str:
    ranks = f"{segment.ranks} ranks" if segment.ranks > 1 else "1 rank"
    mesh = f" ({segment.mesh})" if segment.mesh else ""
    who = f"{ranks}{mesh}" if segment.executor == "group" else _who(segment.executor)
    steps = segment.end_step - segment.first_step
    return f"{who}: {steps} steps in {segment.seconds:.2f} s"


def _change(note: Any) -> str:
    return f"from step {note.at_step} on {_who(note.target)}: {note.message or note.reason}"
