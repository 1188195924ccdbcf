"""How spans and metrics leave a process: shared files, collectors that are down, Prometheus."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from ditmesh import telemetry
from tests.ports import free_address

REPOSITORY = Path(__file__).parents[2]
Collector = Callable[[], AbstractContextManager[str]]
PATIENCE_S = 60.0

SERVER = """
import asyncio, sys
from pathlib import Path
import grpc
from ditmesh import errors, rpc_status, telemetry

async def serve(request, context):
    try:
        with telemetry.server_span("test.S/Serve", context.invocation_metadata(), job_id="j"):
            with telemetry.span("steps") as steps:
                for step in range(3):
                    steps.event("step", step=step)
            if request == b"fail":
                raise errors.GroupLost("rank 1 died")
            return b"done"
    except errors.DitmeshError as error:
        await rpc_status.abort(context, error)

async def main(path):
    config = telemetry.TelemetryConfig("server", exporters=("file",), trace_file=Path(path))
    telemetry.setup(config)
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(serve)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.S", {"Serve": handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)
    telemetry.shutdown()

asyncio.run(main(sys.argv[1]))
"""

WRITER = """
import sys
from pathlib import Path
from ditmesh import telemetry

config = telemetry.TelemetryConfig("w", exporters=("file",), trace_file=Path(sys.argv[1]))
active = telemetry.setup(config)
for i in range(300):
    with telemetry.span("span", i=i, words="x" * (i * 37 % 9000)):
        pass
active.shutdown(60)
"""

DOWN = """
import logging, sys, threading, time
from ditmesh import telemetry
from ditmesh.telemetry import sdk

endpoint, export_s, shutdown_s, known = sys.argv[1:]
said = threading.Event()

class Handler(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        said.set()

logging.getLogger().addHandler(Handler())
sdk._EXPORT_TIMEOUT_S = float(export_s)
config = telemetry.TelemetryConfig("d", exporters=("otlp",), otlp_endpoint=endpoint)
active = telemetry.setup(config)
began = time.monotonic()
for i in range(1000):
    with telemetry.span("span", i=i) as span:
        span.event("event")
    active.metrics.step_done(executor="group", seconds=0.1)
spans_s = time.monotonic() - began
assert known == "unknown" or said.wait(60)
began = time.monotonic()
active.shutdown(float(shutdown_s))
print(spans_s, time.monotonic() - began)
"""


def run(program: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *map(str, args)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_trace_through_two_processes(tmp_path: Path) -> None:
    """A call from one process to another leaves one trace in the file that both write."""
    path = tmp_path / "made" / "spans.jsonl"
    server = run(SERVER, path)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    telemetry.setup(telemetry.TelemetryConfig("client", exporters=("file",), trace_file=path))
    with telemetry.span("job") as job, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for request in (b"go", b"fail"):
            try:
                with telemetry.client_span("test.S/Serve"):
                    call = channel.unary_unary("/test.S/Serve")
                    call(request, metadata=telemetry.current_metadata(), timeout=20)
            except grpc.RpcError:
                job.event("fallback", reason="GROUP_LOST")
    telemetry.shutdown()
    _, err = server.communicate("", timeout=30)
    spans = [json.loads(line) for line in path.read_text().splitlines()]

    assert (server.returncode, err) == (0, "")
    assert {span["trace_id"] for span in spans} == {job.trace_id}
    parents = {span["span_id"]: (span["service"], span["name"], span["kind"]) for span in spans}
    links = sorted(
        (span["service"], span["name"], span["kind"], parents.get(span["parent_span_id"]))
        for span in spans
        if span["parent_span_id"]
    )
    caller = ("client", "test.S/Serve", "CLIENT")
    callee = ("server", "test.S/Serve", "SERVER")
    assert links == [
        (*caller, ("client", "job", "INTERNAL")),
        (*caller, ("client", "job", "INTERNAL")),
        ("server", "steps", "INTERNAL", callee),
        ("server", "steps", "INTERNAL", callee),
        (*callee, caller),
        (*callee, caller),
    ]
    codes = [s["attributes"]["rpc.response.status_code"] for s in spans if "test" in s["name"]]
    assert sorted(codes) == ["INTERNAL", "INTERNAL", "OK", "OK"]
    text = telemetry.render_trace(path, job.trace_id)
    assert "FAILED GROUP_LOST: rank 1 died" in text


def record_and_end(path: str) -> int:
    """What a forked child does: telemetry of its own, begun and ended in it."""
    telemetry.setup(telemetry.TelemetryConfig("child", exporters=("file",), trace_file=Path(path)))
    with telemetry.span("work"):
        pass
    telemetry.shutdown()
    return 7


def test_forked_child_has_telemetry_of_its_own(tmp_path: Path) -> None:
    """The SDK can be imported before a fork and used after it, by children of a supervisor."""
    path = tmp_path / "spans.jsonl"
    program = (
        "import sys; sys.path.insert(0, 'tests/telemetry')\n"
        "from ditmesh.supervisor import ChildSpec, Supervisor\n"
        "target = 'test_telemetry_export:record_and_end'\n"
        "child = ChildSpec('c', target, sys.argv[1], restart=False)\n"
        "sys.exit(Supervisor([child], preload=['ditmesh.telemetry.sdk']).run())\n"
    )
    process = run(program, path)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 7
    [span] = map(json.loads, path.read_text().splitlines())
    assert (span["name"], span["service"]) == ("work", "child")
    assert span["pid"] != process.pid


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Four processes that write at once leave whole lines only, every one of them."""
    path = tmp_path / "spans.jsonl"
    writers = [run(WRITER, path) for _ in range(4)]
    for writer in writers:
        assert writer.communicate(timeout=60) == ("", "")
    spans = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(spans) == 4 * 300
    assert len({span["span_id"] for span in spans}) == 4 * 300
    assert len({span["pid"] for span in spans}) == 4


def test_collector_gets_spans_and_metrics() -> None:
    """What a process did is with the collector when `shutdown` returns, if that has the time."""
    spans: list[Any] = []
    metrics: list[Any] = []
    server = grpc.server(futures.ThreadPoolExecutor(2))
    for service, request, kept in (
        ("trace", trace_service_pb2.ExportTraceServiceRequest, spans),
        ("metrics", metrics_service_pb2.ExportMetricsServiceRequest, metrics),
    ):
        handler = grpc.unary_unary_rpc_method_handler(
            lambda message, _, kept=kept: kept.append(message) or b"",
            request_deserializer=request.FromString,
        )
        name = f"opentelemetry.proto.collector.{service}.v1.{service.capitalize()}Service"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"Export": handler}),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    active = telemetry.setup(
        telemetry.TelemetryConfig("sender", exporters=("otlp",), otlp_endpoint=f"127.0.0.1:{port}")
    )
    with telemetry.span("job") as job:
        active.metrics.fell_back(reason="NO_GROUP", source="group", target="local")
    active.shutdown(PATIENCE_S)
    telemetry.shutdown()
    server.stop(None).wait()

    [resource] = [resource for message in spans for resource in message.resource_spans]
    [span] = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("job", job.trace_id)
    assert "sender" in {a.value.string_value for a in resource.resource.attributes}
    [scope] = [s for m in metrics for r in m.resource_metrics for s in r.scope_metrics]
    assert [metric.name for metric in scope.metrics] == ["ditmesh.fallbacks"]


@contextmanager
def refusing() -> Iterator[str]:
    yield "http://127.0.0.1:1"


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("collector", "export_s", "shutdown_s", "known", "said"),
    [
        (refusing, PATIENCE_S, telemetry.SHUTDOWN_S, "unknown", {0, 1}),
        (silent, PATIENCE_S, telemetry.SHUTDOWN_S, "unknown", {0, 1}),
        (refusing, 1.0, PATIENCE_S, "known", {1}),  # the end need not wait
    ],
)
def test_collector_down_costs_nothing(
    collector: Collector, export_s: float, shutdown_s: float, known: str, said: set[int]
) -> None:
    """A collector that refuses or never answers delays no span and no end, and is said once."""
    with collector() as endpoint:
        process = run(DOWN, endpoint, export_s, shutdown_s, known)
        out, err = process.communicate(timeout=2 * PATIENCE_S)
    spans_took_s, shutdown_took_s = map(float, out.split())
    assert process.returncode == 0
    # Whatever waited for the collector would take as long as its patience lasts.
    assert spans_took_s < PATIENCE_S / 2
    assert shutdown_took_s < PATIENCE_S / 2
    assert len(err.splitlines()) in said
    assert all(line.startswith("telemetry cannot reach ") for line in err.splitlines())


def test_unwritable_trace_file_stops_the_start(tmp_path: Path) -> None:
    """A trace file that cannot be opened is an error at once, not a silent loss later."""
    config = telemetry.TelemetryConfig("tested", exporters=("file",), trace_file=tmp_path)
    with pytest.raises(IsADirectoryError):
        telemetry.setup(config)


def test_full_disk_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Spans that cannot be written are lost, with one line in the log and no exception."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    telemetry.setup(telemetry.TelemetryConfig("tested", exporters=("file",), trace_file=full))
    for _ in range(3):
        with telemetry.span("lost"):
            pass
        time.sleep(0.6)  # longer than the delay after which spans are written
    telemetry.shutdown()
    [record] = caplog.records
    assert "telemetry cannot reach /dev/full" in record.getMessage()
    assert "No space left" in record.getMessage()


def test_console_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """The console exporter writes one short line a span to stderr."""
    telemetry.setup(telemetry.TelemetryConfig("tested", exporters=("console",)))
    with telemetry.span("job", steps=3) as job:
        pass
    telemetry.shutdown()
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("span tested job ")
    assert line.endswith(f"ms UNSET trace={job.trace_id} ditmesh.steps=3")


def test_prometheus_serves_every_metric() -> None:
    """Every instrument of the table appears, with its labels and values, as Prometheus text."""
    address = free_address()
    active = telemetry.setup(telemetry.TelemetryConfig("tested", prometheus_address=address))
    metrics = active.metrics
    metrics.job_ended(model='flux "dev"', outcome="OK", seconds=3.0)
    metrics.step_done(executor="group", seconds=0.2)
    metrics.step_done(executor="group", seconds=0.02)
    metrics.fell_back(reason="GROUP_LOST", source="group", target="local")
    metrics.predict_answered(executor="local", outcome="OK")
    metrics.observe({"ditmesh.queue.length": lambda: 4, "ditmesh.bytes_in_flight": lambda: 1 << 20})
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{address}/other", timeout=10)
    caught.value.close()
    telemetry.shutdown()

    job = 'ditmesh_model="flux \\"dev\\"",ditmesh_outcome="OK"'
    moved = 'ditmesh_reason="GROUP_LOST",ditmesh_from="group",ditmesh_to="local"'
    for line in (
        "# TYPE ditmesh_jobs_total counter",
        f"ditmesh_jobs_total{{{job}}} 1",
        "# TYPE ditmesh_job_duration_seconds histogram",
        f"ditmesh_job_duration_seconds_sum{{{job}}} 3.0",
        'ditmesh_steps_total{ditmesh_executor="group"} 2',
        'ditmesh_step_duration_seconds_bucket{ditmesh_executor="group",le="0.025"} 1',
        'ditmesh_step_duration_seconds_bucket{ditmesh_executor="group",le="0.25"} 2',
        'ditmesh_step_duration_seconds_bucket{ditmesh_executor="group",le="+Inf"} 2',
        'ditmesh_step_duration_seconds_count{ditmesh_executor="group"} 2',
        f"ditmesh_fallbacks_total{{{moved}}} 1",
        'ditmesh_predict_calls_total{ditmesh_executor="local",ditmesh_outcome="OK"} 1',
        "# TYPE ditmesh_queue_length gauge",
        "ditmesh_queue_length 4",
        "ditmesh_bytes_in_flight 1048576",
    ):
        assert line in text.splitlines()


def test_prometheus_port_in_use_stops_the_start() -> None:
    """An address that is taken is an error at once, and leaves nothing running."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            telemetry.setup(telemetry.TelemetryConfig("tested", prometheus_address=address))
