"""A recorded trace as text for a person.

Reads the JSON lines of the file exporter, so a trace can be looked at without any collector:

    trace 6f1c…e2, spans: 9, 1834.2 ms

     start ms   for ms
          0.0   1834.2  Sample  client  steps=8
          1.3   1830.9    ditmesh.v1.SamplerService/Sample  coordinator  job_id=demo
        912.0                · fallback  reason=GROUP_LOST from=group to=local
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

_COMPRESS_FROM: Final = 4  # so many alike in a row become one line
_VALUE_CHARS: Final = 80
_HIDDEN: Final = frozenset(
    {"rpc.system.name", "rpc.method", "error.type", "exception.stacktrace", "exception.escaped"}
)

_Block = tuple[int, list[str]]  # when it begins, unix ns; its lines


@dataclass
class _Span:
    fields: dict[str, Any]
    children: list[_Span] = field(default_factory=list)

    @property
    def start(self) -> int:
        return int(self.fields["start_unix_ns"])

    @property
    def end(self) -> int:
        return int(self.fields["end_unix_ns"] or self.start)

    @property
    def who(self) -> str:
        service, instance = self.fields["service"], self.fields["instance"]
        return f"{service} {instance}".strip()

    @property
    def plain_leaf(self) -> bool:
        """Whether one line says all of it."""
        return not self.children and not self.fields["events"] and self.fields["status"] != "ERROR"


def render_trace(spans_file: Path, trace_id: str) -> str:
    """The spans of one trace as an indented tree, with times in ms from its first moment.

    Runs of like spans or events become one line. Raises LookupError when the file holds no span
    of that trace, OSError when it cannot be read, ValueError when it is no file of spans.
    """
    spans = [_Span(fields) for fields in _read(spans_file) if fields["trace_id"] == trace_id]
    if not spans:
        raise LookupError(f"no span of trace {trace_id} in {spans_file}")
    roots = _tree(spans)
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    head = f"trace {trace_id}, spans: {len(spans)}, {(last - first) / 1e6:.1f} ms"
    lines = [head, "", " start ms    for ms"]
    for _, block in _blocks(roots, first, depth=0):
        lines += block
    return "\n".join(lines) + "\n"


def latest_trace_id(spans_file: Path) -> str | None:
    """The trace of the span that began last in a file; None when it holds none."""
    latest = max(_read(spans_file), key=lambda fields: int(fields["start_unix_ns"]), default=None)
    return str(latest["trace_id"]) if latest else None


def _read(spans_file: Path) -> Iterator[dict[str, Any]]:
    with spans_file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.endswith("\n"):  # the last one may be about to be written
                yield json.loads(line)


def _tree(spans: Iterable[_Span]) -> list[_Span]:
    """Links children to parents, all in order of time; returns those without a known parent."""
    ordered = sorted(spans, key=lambda s: s.start)
    by_id = {s.fields["span_id"]: s for s in ordered}
    roots: list[_Span] = []
    for s in ordered:
        parent = by_id.get(s.fields["parent_span_id"])
        (parent.children if parent else roots).append(s)
    return roots


def _span_lines(s: _Span, first: int, depth: int) -> Iterator[str]:
    failed = s.fields["status"] == "ERROR"
    parts = [s.fields["name"], s.who, _attributes(s.fields["attributes"])]
    if depth == 0 and s.fields["parent_span_id"]:
        parts.append("(parent not recorded)")
    if failed:
        kind = s.fields["attributes"].get("error.type", "error")
        parts.append(f"FAILED {kind}: {_short(s.fields['status_message'])}")
    text = "  ".join(part for part in parts if part)
    yield _line(s.start - first, s.end - s.start, depth, text)
    # The words of an exception that failed the span stand in its line already.
    events = [e for e in s.fields["events"] if not (failed and e["name"] == "exception")]
    blocks = [*_event_blocks(events, first, depth + 1), *_blocks(s.children, first, depth + 1)]
    for _, lines in sorted(blocks, key=lambda block: block[0]):
        yield from lines


def _blocks(spans: Sequence[_Span], first: int, depth: int) -> Iterator[_Block]:
    """Sibling spans, runs of like ones in one line."""

    def alike(s: _Span) -> object:
        return (s.fields["name"], s.who) if s.plain_leaf else id(s)

    for _, run in groupby(spans, alike):
        group = list(run)
        if len(group) < _COMPRESS_FROM:
            for s in group:
                yield s.start, list(_span_lines(s, first, depth))
            continue
        head, times = group[0], [(s.end - s.start) / 1e6 for s in group]
        text = (
            f"{head.fields['name']} x{len(group)}  {head.who}  "
            f"median {median(times):.1f} ms, longest {max(times):.1f} ms"
        )
        yield head.start, [_line(head.start - first, group[-1].end - head.start, depth, text)]


def _event_blocks(events: Sequence[dict[str, Any]], first: int, depth: int) -> Iterator[_Block]:
    """The events of a span, runs of like ones in one line."""
    for name, run in groupby(events, lambda event: event["name"]):
        group = list(run)
        if len(group) < _COMPRESS_FROM:
            for event in group:
                text = f"· {name}  {_attributes(event['attributes'])}".rstrip()
                yield event["unix_ns"], [_line(event["unix_ns"] - first, None, depth, text)]
            continue
        times = [event["unix_ns"] for event in group]
        gaps = [(b - a) / 1e6 for a, b in pairwise(times)]
        text = f"· {name} x{len(group)}  every {median(gaps):.1f} ms, longest {max(gaps):.1f} ms"
        yield times[0], [_line(times[0] - first, times[-1] - times[0], depth, text)]


def _line(start_ns: int, length_ns: int | None, depth: int, text: str) -> str:
    length = "" if length_ns is None else f"{length_ns / 1e6:.1f}"
    return f"{start_ns / 1e6:9.1f} {length:>9}  {'  ' * depth}{text}"


def _attributes(attributes: dict[str, Any]) -> str:
    return " ".join(
        f"{key.removeprefix('ditmesh.')}={_short(value)}"
        for key, value in attributes.items()
        if key not in _HIDDEN
    )


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 1] + "…"
