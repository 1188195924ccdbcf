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


def test_a_trace_without_a_client_has_no_account() -> None:
    """Its wall time is unknown."""
    with pytest.raises(ValueError, match="client"):
        account([span("step", 0, 1)])


def test_profiles_count_the_innermost_function() -> None:
    """By file, whatever line."""
    raw = "a (x/m.py:1);f (pkg/n.py:7) 3\na (x/m.py:1);f (pkg/n.py:9) 1\nb 4\n"
    assert top_functions(raw, 2) == [["f (n.py)", "50.0 %"], ["b", "50.0 %"]]
