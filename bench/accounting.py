"""Where the time of one job went, from the spans of its trace.

Every moment between the client's call and its answer belongs to the innermost span that was open
then. Spans that merely say that a call is being handled account for nothing: what is left to them
is time that nobody can explain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

ENVELOPES = frozenset({"job", "run", "ahead"})
"""Besides these, spans of calls, which have a service in their name."""
TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Account:
    """Nanoseconds of a job: in all, and by the span that they belong to."""

    total: int
    by_name: Mapping[str, int]

    @property
    def share(self) -> float:
        """What the named spans account for, 0 to 1."""
        return sum(self.by_name.values()) / self.total if self.total else 0.0

    def largest_but_the_transformer(self) -> tuple[str, float]:
        """The span that has most of the time besides the transformer's, and its share."""
        others = {name: ns for name, ns in self.by_name.items() if name != TRANSFORMER}
        name = max(others, key=lambda n: others[n], default="")
        return name, others.get(name, 0) / self.total if self.total else 0.0


def account(spans: Iterable[Mapping[str, Any]]) -> Account:
    """The account of one trace, whose spans are as the trace file has them.

    Raises ValueError when there is no call of a client among them.
    """
    everything = list(spans)
    calls = [s for s in everything if s["service"] == "client" and _is_call(s["name"])]
    if not calls:
        raise ValueError("the trace has no span of a client's call")
    call = max(calls, key=lambda s: int(s["end_unix_ns"]) - int(s["start_unix_ns"]))
    first, last = int(call["start_unix_ns"]), int(call["end_unix_ns"])
    work = [s for s in everything if s["name"] not in ENVELOPES and not _is_call(str(s["name"]))]
    by_name: Counter[str] = Counter()
    for start, end, name in _innermost(work):
        inside = min(end, last) - max(start, first)
        if inside > 0:
            by_name[name] += inside
    return Account(last - first, by_name)


def _is_call(name: str) -> bool:
    return "/" in name


def _innermost(spans: Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, int, str]]:
    """Stretches of time with the name of the span that began last of those open then."""
    moments = sorted({int(s[edge]) for s in spans for edge in ("start_unix_ns", "end_unix_ns")})
    ordered = sorted(spans, key=lambda s: int(s["start_unix_ns"]))
    waiting = iter(ordered)
    upcoming = next(waiting, None)
    open_now: list[Mapping[str, Any]] = []
    for start, end in pairwise(moments):
        while upcoming is not None and int(upcoming["start_unix_ns"]) <= start:
            open_now.append(upcoming)
            upcoming = next(waiting, None)
        open_now = [s for s in open_now if int(s["end_unix_ns"]) > start]
        if open_now:
            yield start, end, str(open_now[-1]["name"])
