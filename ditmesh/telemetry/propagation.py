"""Trace contexts in gRPC metadata, as W3C Trace Context (https://www.w3.org/TR/trace-context/).

Needs no OpenTelemetry: a client without it still begins a trace that the servers join.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

Metadata = tuple[tuple[str, str | bytes], ...]
"""gRPC metadata: pairs of lower-case key and value."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE_LIMIT: Final = 512  # what the standard asks everyone to carry
_SAMPLED: Final = 0x01
_IDS: Final = random.SystemRandom()  # unlike random's own generator, never the same after a fork


@dataclass(frozen=True)
class TraceContext:
    """One span of one trace, as other processes need to know it."""

    trace_id: int
    span_id: int
    sampled: bool = True
    tracestate: str = ""
    remote: bool = False

    @property
    def traceparent(self) -> str:
        """The value of the header of that name."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @classmethod
    def new_root(cls) -> TraceContext:
        """A new trace that every process shall record."""
        return cls(_IDS.randrange(1, 1 << 128), _IDS.randrange(1, 1 << 64))


def inject(metadata: Iterable[tuple[str, str | bytes]], context: TraceContext | None) -> Metadata:
    """`metadata` with `context` in place of any trace context that it had."""
    rest = tuple(pair for pair in metadata if pair[0] not in ("traceparent", "tracestate"))
    if context is None:
        return rest
    state = (("tracestate", context.tracestate),) if context.tracestate else ()
    return (*rest, ("traceparent", context.traceparent), *state)


def extract(metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
    """The caller's trace context; None when it sent none, or none that is valid."""
    parents, states = [], []
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str):
            parents.append(value)
        elif key == "tracestate" and isinstance(value, str):
            states.append(value)
    match = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16):
        return None
    if not int(span_id, 16):
        return None
    state = ",".join(states)
    return TraceContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        sampled=bool(int(flags, 16) & _SAMPLED),
        tracestate=state if len(state) <= _TRACESTATE_LIMIT else "",
        remote=True,
    )
