"""Every moment of a job belongs to one span, or to none."""

from __future__ import annotations

from typing import Any

import pytest

from bench.accounting import account
from bench.suites.tracing import top_functions


def span(name: str, start: int, end: int, service: str = "gpu_node") -> dict[str, Any]:
    return {"name": name, "service": service, "start_unix_ns": start, "end_unix_ns": end}


CALL = span("ditmesh.v1.SamplerService/Sample", 0, 100, "client")


def test_a_moment_belongs_to_the_innermost_span() -> None:
    """The one that began last; what lies outside the call is not its time."""
    found = account(
        [CALL, span("queue", -10, 20), span("step", 20, 80), span("transformer", 30, 70)]
    )
    assert found.total == 100
    assert found.by_name == {"queue": 20, "step": 20, "transformer": 40}
    assert found.share == 0.8
    assert found.largest_but_the_transformer() == ("queue", 0.2)


def test_envelopes_account_for_nothing() -> None:
    """That a job was being handled does not say what was done."""
    found = account([CALL, span("job", 0, 100), span("run", 10, 90), span("x.Y/Z", 10, 90)])
    assert found.share == 0.0


def test_spans_of_many_processes_count_each_moment_once() -> None:
    """Ranks do the same at the same time, and stages overlap: the share is never more than 1."""
    ranks = [span("receive", 5, 30), span("receive", 6, 40), span("step", 40, 90)]
    found = account([CALL, *ranks, span("queue", 0, 10, "coordinator"), span("step", 50, 120)])
    assert found.by_name == {"queue": 5, "receive": 35, "step": 60}
    assert found.share == 1.0


def test_a_gap_between_spans_is_nobodys() -> None:
    """However short: before the first, between two, and after the last."""
    spans = [span("check", 10, 20), span("queue", 25, 30), span("run", 0, 100)]
    found = account([CALL, *spans, span("answer", 30, 90)])
    assert found.by_name == {"check": 10, "queue": 5, "answer": 60}
    assert found.share == 0.75


def test_an_outer_span_has_what_its_inner_ones_leave() -> None:
    """Before, between and after them."""
    inner = [span("transformer", 20, 40), span("transformer", 50, 80)]
    found = account([CALL, span("step", 10, 90), *inner])
    assert found.by_name == {"step": 30, "transformer": 50}
    assert found.largest_but_the_transformer() == ("step", 0.3)


def test_the_longest_call_of_a_client_is_the_job() -> None:
    """A trace may have a prompt and a picture too."""
    encoding = span("ditmesh.v1.PipelineService/EncodePrompt", -50, -10, "client")
    found = account([encoding, CALL, span("encode", -40, -20), span("step", 0, 100)])
    assert (found.total, found.by_name) == (100, {"step": 100})


def test_a_trace_without_a_client_has_no_account() -> None:
    """Its wall time is unknown."""
    with pytest.raises(ValueError, match="client"):
        account([span("step", 0, 1)])


def test_profiles_count_the_innermost_function() -> None:
    """By file, whatever line."""
    raw = "a (x/m.py:1);f (pkg/n.py:7) 3\na (x/m.py:1);f (pkg/n.py:9) 1\nb 4\n"
    assert top_functions(raw, 2) == [["f (n.py)", "50.0 %"], ["b", "50.0 %"]]
