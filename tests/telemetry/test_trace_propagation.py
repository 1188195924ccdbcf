"""Trace contexts in metadata, against the rules of W3C Trace Context."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.telemetry import TraceContext, extract, inject

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@given(
    trace_id=st.integers(1, (1 << 128) - 1),
    span_id=st.integers(1, (1 << 64) - 1),
    sampled=st.booleans(),
    tracestate=st.sampled_from(["", "a=1", "a=1,b=2"]),
)
def test_context_survives_metadata(
    trace_id: int, span_id: int, sampled: bool, tracestate: str
) -> None:
    """What is injected is what is extracted, beside whatever else the metadata hold."""
    context = TraceContext(trace_id, span_id, sampled, tracestate, remote=True)
    other = (("authorization", "x"), ("data-bin", b"\0"))
    metadata = inject(other, context)
    assert metadata[:2] == other
    assert extract(metadata) == context


def test_injecting_replaces_an_older_context() -> None:
    """Metadata never hold two contexts."""
    old = inject((), TraceContext(1, 2, tracestate="old=1"))
    new = TraceContext(3, 4, remote=True)
    assert extract(inject(old, new)) == new
    assert inject(old, None) == ()


@pytest.mark.parametrize(
    "value",
    [
        "",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        PARENT.replace("-", "_"),
    ],
)
def test_invalid_traceparent_is_ignored(value: str) -> None:
    """Malformed, forbidden and all-zero values give no context, and no error."""
    assert extract([("traceparent", value)]) is None


def test_future_version_is_read_as_far_as_known() -> None:
    """A higher version may append fields; the first four mean the same."""
    context = extract([("traceparent", "01" + PARENT[2:] + "-more")])
    assert context is not None
    assert context.traceparent == PARENT


def test_two_parents_are_none() -> None:
    """With two parents neither can be trusted."""
    assert extract([("traceparent", PARENT), ("traceparent", PARENT)]) is None
    assert extract(None) is None


def test_long_tracestate_is_dropped() -> None:
    """A tracestate above 512 characters is left out, the parent is not."""
    context = extract([("traceparent", PARENT), ("tracestate", "a=" + "x" * 600)])
    assert context is not None
    assert context.tracestate == ""


def test_new_roots_differ() -> None:
    """Every new trace has ids of its own."""
    assert len({TraceContext.new_root().trace_id for _ in range(100)}) == 100
