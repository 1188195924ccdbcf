"""What spans record: errors, cancellations, gRPC statuses, parents; and what they do without."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ditmesh import errors, telemetry

REPOSITORY = Path(__file__).parents[2]
Recorded = Callable[[], dict[str, dict[str, Any]]]


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    """Telemetry into a file; the function ends it and gives the spans by name."""
    path = tmp_path / "spans.jsonl"
    telemetry.setup(
        telemetry.TelemetryConfig(
            "tested", "one", exporters=("file",), trace_file=path, sampling_ratio=1.0
        )
    )

    def finish() -> dict[str, dict[str, Any]]:
        telemetry.shutdown()
        return {span["name"]: span for span in map(json.loads, path.read_text().splitlines())}

    yield finish
    telemetry.shutdown()


def test_span_says_who_did_what_when(recorded: Recorded) -> None:
    """Name, service, times, attributes and events of a span are in its line."""
    with telemetry.span("job", steps=8, mesh="ulysses=8", nothing=None) as job:
        job.event("step", step=1)
        telemetry.add_event("preview")
        job.set(executor="group", sigmas=(1.0, 0.5))
    line = recorded()["job"]

    assert (line["service"], line["instance"], line["kind"]) == ("tested", "one", "INTERNAL")
    assert (line["status"], line["parent_span_id"]) == ("UNSET", None)
    assert line["trace_id"] == job.trace_id
    assert line["attributes"] == {
        "ditmesh.steps": 8,
        "ditmesh.mesh": "ulysses=8",
        "ditmesh.executor": "group",
        "ditmesh.sigmas": [1.0, 0.5],
    }
    assert [(event["name"], event["attributes"]) for event in line["events"]] == [
        ("step", {"ditmesh.step": 1}),
        ("preview", {}),
    ]
    times = [line["start_unix_ns"], *(e["unix_ns"] for e in line["events"]), line["end_unix_ns"]]
    assert times == sorted(times)


def test_children_of_blocks_threads_and_contexts(recorded: Recorded) -> None:
    """A parent is the block around, or the span or context given; else a new trace begins."""
    with telemetry.span("outer") as outer, telemetry.span("inner"):
        pass

    def on_a_thread() -> None:
        with telemetry.span("given", parent=outer), telemetry.span("below"):
            pass
        with telemetry.span("by context", parent=outer.context):
            pass
        with telemetry.span("alone"):
            pass

    thread = threading.Thread(target=on_a_thread)
    thread.start()
    thread.join()
    lines = recorded()

    def parent(name: str) -> str | None:
        found = [k for k, v in lines.items() if v["span_id"] == lines[name]["parent_span_id"]]
        return found[0] if found else None

    names = ("inner", "given", "below", "by context", "alone")
    assert [parent(n) for n in names] == ["outer", "outer", "given", "outer", None]
    assert len({lines[name]["trace_id"] for name in ("outer", *names[:4])}) == 1
    assert lines["alone"]["trace_id"] != lines["outer"]["trace_id"]


def test_exception_is_recorded_and_passes_on(recorded: Recorded) -> None:
    """An error leaves the block, and the span says which one: a reason of the tree, or a type."""
    with pytest.raises(errors.GroupLost), telemetry.span("known"):
        raise errors.GroupLost("rank 3 died")
    with pytest.raises(ZeroDivisionError), telemetry.span("unknown"):
        _ = 1 / 0
    lines = recorded()

    assert lines["known"]["status"] == "ERROR"
    assert lines["known"]["status_message"] == "rank 3 died"
    assert lines["known"]["attributes"]["error.type"] == "GROUP_LOST"
    assert lines["known"]["events"][0]["name"] == "exception"
    assert lines["unknown"]["attributes"]["error.type"] == "ZeroDivisionError"


def test_cancellation_is_no_error(recorded: Recorded) -> None:
    """A span that was cancelled, by task or by request, has an event and no error status."""

    async def cancelled() -> None:
        with telemetry.span("task"):
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(1)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    with pytest.raises(errors.JobCancelled), telemetry.span("job"):
        raise errors.JobCancelled("by its owner")
    for line in recorded().values():
        assert line["status"] == "UNSET"
        assert [event["name"] for event in line["events"]] == ["cancelled"]


def test_overcome_failure_can_be_recorded(recorded: Recorded) -> None:
    """A span can fail without an exception passing through it, as when a fallback takes over."""
    with telemetry.span("group") as group:
        group.fail(errors.GroupLost("rank 0 hung"))
    assert recorded()["group"]["status"] == "ERROR"


@pytest.mark.parametrize(
    ("error", "code", "server_status", "client_status"),
    [
        (None, "OK", "UNSET", "UNSET"),
        (errors.InvalidRequest("bad", field="cfg"), "INVALID_ARGUMENT", "UNSET", "ERROR"),
        (errors.GroupLost("gone"), "INTERNAL", "ERROR", "ERROR"),
        (errors.Overloaded("full"), "RESOURCE_EXHAUSTED", "UNSET", "ERROR"),
        (errors.JobCancelled("enough"), "CANCELLED", "UNSET", "UNSET"),
        (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "ERROR", "ERROR"),
        (RuntimeError("defect"), "INTERNAL", "ERROR", "ERROR"),
    ],
)
def test_rpc_spans_carry_the_stable_names(
    recorded: Recorded,
    error: Exception | None,
    code: str,
    server_status: str,
    client_status: str,
) -> None:
    """System, method and status code are set; whose fault it was decides the span's status."""
    for name, manager in (
        ("test.S/Serve", telemetry.server_span("test.S/Serve", ())),
        ("test.S/Call", telemetry.client_span("/test.S/Call")),
    ):
        if error is None:
            with manager:
                pass
        else:
            with pytest.raises(type(error)), manager:
                raise error
        assert name
    lines = recorded()

    for name, kind, status in (
        ("test.S/Serve", "SERVER", server_status),
        ("test.S/Call", "CLIENT", client_status),
    ):
        line = lines[name]
        assert (line["kind"], line["status"]) == (kind, status)
        rpc = {k: v for k, v in line["attributes"].items() if k.startswith("rpc.")}
        assert rpc == {
            "rpc.system.name": "grpc",
            "rpc.method": name,
            "rpc.response.status_code": code,
        }


def test_abort_within_a_server_span_keeps_its_code(recorded: Recorded) -> None:
    """GRPC's own exception for an aborted call is read as the error that it was aborted with."""

    class Context:
        def set_trailing_metadata(self, metadata: object) -> None: ...

        def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise Exception

    from ditmesh import rpc_status

    with pytest.raises(Exception), telemetry.server_span("test.S/Serve", ()):  # noqa: B017
        rpc_status.abort_sync(Context(), errors.UnknownModel("none"))  # type: ignore[arg-type]
    assert recorded()["test.S/Serve"]["attributes"]["rpc.response.status_code"] == "NOT_FOUND"


def test_dropped_stream_ends_its_span_quietly(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    """An async generator that is closed in another task than it ran in ends its span, no more."""

    async def serve() -> AsyncIterator[int]:
        with telemetry.server_span("test.S/Stream", ()):
            yield 1
            yield 2

    async def drop() -> None:
        stream = serve()
        await asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]

    asyncio.run(drop())
    line = recorded()["test.S/Stream"]
    assert line["attributes"]["rpc.response.status_code"] == "CANCELLED"
    assert line["status"] == "UNSET"
    assert caplog.records == []


def test_long_span_ends_once(recorded: Recorded) -> None:
    """A span that was started by hand may be ended twice, and used after; it is recorded once."""
    job = telemetry.start_span("job")
    job.end()
    job.end()
    job.event("late")
    job.set(late=True)
    line = recorded()["job"]
    assert line["events"] == []
    assert line["attributes"] == {}


def test_sampling_ratio_zero_records_only_what_others_began(tmp_path: Path) -> None:
    """The ratio counts for traces that begin here; a caller's choice is kept."""
    path = tmp_path / "spans.jsonl"
    telemetry.setup(
        telemetry.TelemetryConfig(
            "tested", exporters=("file",), trace_file=path, sampling_ratio=0.0
        )
    )
    caller = telemetry.TraceContext(trace_id=7, span_id=8, remote=True)
    with telemetry.span("own"):
        assert telemetry.current_metadata()[0][1].endswith("-00")
    with telemetry.server_span("callers", telemetry.inject((), caller)):
        pass
    telemetry.shutdown()
    [line] = map(json.loads, path.read_text().splitlines())
    assert (line["name"], line["parent_span_id"]) == ("callers", f"{8:016x}")


def test_without_setup_contexts_pass_through() -> None:
    """With no exporter whoever begins makes a valid trace; a server hands on what it got."""
    with telemetry.span("client") as root:
        metadata = telemetry.current_metadata()
        assert telemetry.extract(metadata).trace_id == int(root.trace_id, 16)  # type: ignore[union-attr]
    with telemetry.server_span("test.S/Serve", metadata), telemetry.span("below"):
        assert telemetry.current_metadata() == metadata
    with telemetry.server_span("test.S/Serve", ()) as untraced:
        assert telemetry.current_metadata() == ()
        assert untraced.trace_id == ""
    assert telemetry.current_metadata() == ()


def test_without_opentelemetry_everything_still_works() -> None:
    """A bare client has spans that propagate, metrics that do nothing, and one line of advice."""
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from pathlib import Path\n"
        "from ditmesh import telemetry as t\n"
        "config = t.TelemetryConfig('c', exporters=('file',), trace_file=Path('/nowhere/x'))\n"
        "active = t.setup(config)\n"
        "active.metrics.job_ended(model='m', outcome='OK', seconds=1.0)\n"
        "active.metrics.observe({'ditmesh.queue.length': int})\n"
        "with t.client_span('a.B/C') as call:\n"
        "    call.event('x', y=1); call.set(z=2); call.fail(ValueError())\n"
        "    print(t.current_metadata()[0][0], len(call.trace_id))\n"
        "t.shutdown()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.stdout == "traceparent 32\n"
    assert done.stderr == "no traces and metrics: install opentelemetry, or ditmesh[node]\n"


def test_joins_the_traces_of_an_application() -> None:
    """Without `setup`, spans join the trace of an application that set OpenTelemetry up itself."""
    program = (
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))\n"
        "from ditmesh import telemetry\n"
        "with trace.get_tracer('app').start_as_current_span('app') as app:\n"
        "    with telemetry.client_span('a.B/C') as call:\n"
        "        print(call.context.trace_id == app.get_span_context().trace_id)\n"
        "        print(call.context.span_id != app.get_span_context().span_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"exporters": ("jaeger",)},
        {"exporters": ("file",)},
        {"exporters": ("otlp",), "otlp_endpoint": ""},
        {"sampling_ratio": 1.1},
        {"sampling_ratio": float("nan")},
        {"prometheus_address": "9464"},
        {"prometheus_address": "localhost:http"},
    ],
)
def test_bad_config_is_refused(wrong: dict[str, Any]) -> None:
    """Values that do not fit together stop the start."""
    with pytest.raises(ValueError):
        telemetry.TelemetryConfig("tested", **wrong)
