"""The local sampler's own process: what it may take, and what becomes of a job that needs more."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from coordinator import local_sampler
from ditmesh.errors import ExecutorFailed
from ditmesh.executor.server import ExecutorConfig
from ditmesh.rpc_status import from_rpc_error
from ditmesh.telemetry import TelemetryConfig
from ditmesh.v1 import job_pb2, node_pb2, node_pb2_grpc
from tests.executor.node import Stream, golden_job
from tests.sampling.golden_cases import CHECKPOINT

MEMORY_BYTES = 3 << 30
START_S = 90.0

PROGRAM = """
import resource
import sys
from pathlib import Path
from coordinator.local_sampler import LocalSamplerConfig, run
from ditmesh.executor.server import ExecutorConfig
from ditmesh.telemetry import TelemetryConfig

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
executor = ExecutorConfig(listen=sys.argv[1], telemetry=TelemetryConfig("local_sampler"))
sys.exit(run(LocalSamplerConfig(
    models=Path(sys.argv[2]), device="cpu", dtype="fp32", max_loaded=1, executor=executor,
    memory_bytes=int(sys.argv[3]), preload="tiny",
)))
"""


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[node_pb2_grpc.NodeServiceStub]:
    """A local sampler that may have 3 GiB, and loads its model at the start."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.safetensors").symlink_to(CHECKPOINT)
    address = f"unix:{tmp_path / 'local.sock'}"
    models = str(tmp_path / "models")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, address, models, str(MEMORY_BYTES)])
    try:
        with grpc.insecure_channel(address) as channel:
            end = time.monotonic() + START_S
            while not (tmp_path / "local.sock").exists():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            grpc.channel_ready_future(channel).result(START_S)
            yield node_pb2_grpc.NodeServiceStub(channel)
    finally:
        process.terminate()
        assert process.wait(30.0) == 0


def test_a_job_beyond_the_memory_limit_fails_and_the_process_lives(
    sampler: node_pb2_grpc.NodeServiceStub,
) -> None:
    """In words that name memory; the next job is done. It serves while it loads its first model:
    one that is started again is there for whoever waits. And it may have all files open that such
    a process may.
    """
    for report in sampler.Watch(node_pb2.WatchRequest()):
        if report.models[0].loaded:
            break
    soft, hard = resource.prlimit(report.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
    # Latent and noise of 4 GiB each, without a byte on the wire.
    vast = golden_job(empty_latent=job_pb2.EmptyLatent(batch=1, height=8192, width=8192))
    stream = Stream(sampler)
    with pytest.raises(grpc.RpcError) as caught:
        stream.prepare(vast)
    stream.end()
    error = from_rpc_error(caught.value)
    assert isinstance(error, ExecutorFailed)
    assert "memory" in error.message
    small = Stream(sampler)
    small.prepare(golden_job())
    small.send(start=node_pb2.StartRun())
    assert small.follow().result is not None
    small.end()


def test_with_a_limit_little_is_kept_that_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept counts as memory of the process, and the next job needs it."""
    limits, kept = list[tuple[int, int]](), list[int]()

    def serve(config: ExecutorConfig, *args: object, **options: object) -> int:
        kept.append(config.kept_bytes)
        return 0

    monkeypatch.setattr(local_sampler, "serve", serve)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))
    executor = ExecutorConfig("unix:nowhere", TelemetryConfig("local_sampler"))
    for limit in (MEMORY_BYTES, None):
        config = local_sampler.LocalSamplerConfig(
            Path(), "cpu", "fp32", 1, executor, memory_bytes=limit
        )
        assert local_sampler.run(config) == 0
    assert limits == [(MEMORY_BYTES, MEMORY_BYTES)]
    assert 0 < kept[0] <= 8 << 20 < kept[1]
