"""A trace as a person reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ditmesh.telemetry import latest_trace_id, render_trace

TRACE = "a" * 32
MS = 1_000_000


def line(
    span_id: str,
    parent: str | None,
    name: str,
    service: str,
    start_ms: float,
    end_ms: float,
    **more: Any,
) -> dict[str, Any]:
    return {
        "trace_id": TRACE,
        "span_id": span_id,
        "parent_span_id": parent,
        "name": name,
        "kind": "INTERNAL",
        "service": service,
        "instance": "",
        "pid": 1,
        "start_unix_ns": int(start_ms * MS),
        "end_unix_ns": int(end_ms * MS),
        "attributes": {},
        "events": [],
        "status": "UNSET",
        "status_message": "",
        **more,
    }


def event(name: str, at_ms: float, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "unix_ns": int(at_ms * MS), "attributes": attributes}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(fields) + "\n" for fields in lines))
    return path


def test_fallback_after_an_error_tells_the_story(tmp_path: Path) -> None:
    """The tree shows who did what when, the error, the reason for the fallback, and the steps."""
    job = line("1", None, "job", "coordinator", 1000, 2000)
    job["attributes"] = {"ditmesh.job_id": "j7", "rpc.system.name": "grpc"}
    job["events"] = [event("fallback", 1501, **{"ditmesh.reason": "GROUP_LOST"})]
    group = line("2", "1", "run", "gpu_node", 1010, 1500, instance="localhost:7001")
    group |= {"status": "ERROR", "status_message": "rank 3 died\nof old age"}
    group["attributes"] = {"error.type": "GROUP_LOST", "ditmesh.mesh": "ulysses=8"}
    group["events"] = [
        *(event("step", 1100 + 100 * i, **{"ditmesh.step": i}) for i in range(4)),
        event("exception", 1500, **{"exception.message": "rank 3 died"}),
    ]
    local = line("3", "1", "run", "local", 1502, 1990)
    steps = [line(f"s{i}", "3", "step", "local", 1510 + i * 60, 1560 + i * 60) for i in range(8)]

    text = render_trace(write(tmp_path / "f", local, *steps, group, job), TRACE)

    assert text.splitlines() == [
        f"trace {TRACE}, spans: 11, 1000.0 ms",
        "",
        " start ms    for ms",
        "      0.0    1000.0  job  coordinator  job_id=j7",
        "     10.0     490.0    run  gpu_node localhost:7001  mesh=ulysses=8  "
        "FAILED GROUP_LOST: rank 3 died of old age",
        "    100.0     300.0      · step x4  every 100.0 ms, longest 100.0 ms",
        "    501.0              · fallback  reason=GROUP_LOST",
        "    502.0     488.0    run  local",
        "    510.0     470.0      step x8  local  median 50.0 ms, longest 50.0 ms",
    ]


def test_only_plain_spans_are_compressed(tmp_path: Path) -> None:
    """A span that failed, has events or has children keeps a line of its own."""
    steps = [line(f"s{i}", "0", "step", "node", 10 * i, 10 * i + 5) for i in range(10)]
    steps[4]["status"] = "ERROR"
    steps[9]["events"] = [event("late", 95)]
    text = render_trace(
        write(tmp_path / "f", line("0", None, "job", "node", 0, 100), *steps), TRACE
    )
    assert [row[23:].strip().split("  ")[0] for row in text.splitlines()[4:]] == [
        "step x4",
        "step",
        "step x4",
        "step",
        "· late",
    ]


def test_span_without_its_parent_is_a_root(tmp_path: Path) -> None:
    """A node that was killed, or a client that records nothing, leaves children: they are shown."""
    path = write(tmp_path / "f", line("2", "1", "call", "coordinator", 0, 5))
    assert "call  coordinator  (parent not recorded)" in render_trace(path, TRACE)


def test_other_traces_and_half_lines_are_left_out(tmp_path: Path) -> None:
    """Only the trace asked for is shown, and a line that is being written does no harm."""
    other = line("9", None, "other", "x", 50, 60, trace_id="b" * 32)
    path = write(tmp_path / "f", line("1", None, "mine", "x", 0, 5), other)
    with path.open("a") as file:
        file.write('{"trace_id": "aaaa')
    text = render_trace(path, TRACE)
    assert "mine" in text
    assert "other" not in text
    assert latest_trace_id(path) == "b" * 32


def test_long_values_are_cut(tmp_path: Path) -> None:
    """One attribute never fills the screen."""
    fields = line("1", None, "job", "x", 0, 5, attributes={"ditmesh.prompt": "word " * 100})
    text = render_trace(write(tmp_path / "f", fields), TRACE)
    assert max(map(len, text.splitlines())) < 140
    assert "…" in text


def test_unknown_trace_is_said(tmp_path: Path) -> None:
    """A trace that is not in the file is an error that names both."""
    path = write(tmp_path / "f", line("1", None, "job", "x", 0, 5))
    with pytest.raises(LookupError, match=f"no span of trace {'c' * 32} in "):
        render_trace(path, "c" * 32)
    path.write_text("")
    assert latest_trace_id(path) is None
