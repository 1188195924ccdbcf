"""How long it takes until every rank has the input: ditmesh, raw TCP, plain gRPC, Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import grpc
import numpy as np

from bench import jobs, synthetic
from bench.cluster import BenchCluster
from bench.measure import Contestant, Options, Skipped, alternate, timed
from bench.object_store import RayActors
from bench.results import Comparison, Goal, SuiteResult
from bench.servers import OPTIONS, PUSH, RawConnection, Servers, push_chunks
from coordinator.executors.executor import Executor
from coordinator.nodes.link import NodeLink
from ditmesh.exchange import CHUNK_BYTES
from ditmesh.jobs import Job
from ditmesh.tensors import DataType, TensorSpec, WireTensor
from ditmesh.v1 import job_pb2, tensor_pb2

TITLE = "Input to every rank"

_MIB = 1 << 20
_RAW, _GRPC, _RAY, _DITMESH = "raw TCP", "gRPC stream to each", "Ray object store", "ditmesh"
_ELSEWHERE = "ditmesh, ranks on another machine"
_SILENCE_S = 120.0

T = TypeVar("T")


def run(options: Options) -> SuiteResult:
    """Measure. Without Ray the others are compared with raw TCP."""
    models = jobs.write_models(options.folder, (0,))
    sizes = (4,) if options.quick else (4, 64)
    comparisons, goals = [], []
    with ExitStack() as stack:
        cluster = stack.enter_context(BenchCluster(options.folder, models, nodes=options.ranks))
        coordinator = stack.enter_context(_Coordinator(cluster))
        sinks = stack.enter_context(Servers("sink", options.ranks))
        grpc_sinks = stack.enter_context(Servers("grpc-sink", options.ranks))
        raw = _Raw(sinks.addresses)
        streams = _Streams(grpc_sinks.addresses)
        ray = _ray(stack, options.ranks)
        for mib in sizes:
            data = np.random.default_rng(mib).integers(0, 256, mib * _MIB, np.uint8)
            contestants: dict[str, Contestant] = {
                _RAW: timed(raw.send, data.tobytes()),
                _GRPC: timed(streams.send, data.tobytes()),
                _DITMESH: partial(coordinator.send, data),
                _ELSEWHERE: partial(coordinator.send_elsewhere, data),
            }
            if ray is not None:
                contestants[_RAY] = partial(ray.fan_out, mib)
            rounds = options.rounds(21 if mib < 16 else 9, 5)
            series = alternate(contestants, rounds, warmups=2)
            baseline = _RAW if ray is None else _RAY
            title = f"{mib} MiB to {options.ranks} ranks"
            comparison = Comparison(title, "ms", series, baseline=baseline)
            comparisons.append(comparison)
            if ray is not None:
                goals.append(Goal(f"{title}: to Ray", comparison.ratio(_DITMESH), 1.0, "x"))
    return SuiteResult(comparisons, goals=goals)


def _ray(stack: ExitStack, count: int) -> RayActors | None:
    try:
        return stack.enter_context(RayActors(count))
    except Skipped as reason:
        print(f"without Ray: {reason}", flush=True)
        return None


class _Raw:
    def __init__(self, addresses: list[str]) -> None:
        self._connections = [RawConnection(address) for address in addresses]
        self._pool = ThreadPoolExecutor(len(addresses))

    def send(self, data: bytes) -> None:
        """To all at once, a thread each."""
        list(self._pool.map(lambda connection: connection.send(data), self._connections))
        for connection in self._connections:
            connection.answer()


class _Streams:
    def __init__(self, addresses: list[str]) -> None:
        self._pushes: list[Any] = [
            grpc.insecure_channel(address, OPTIONS).stream_unary(
                PUSH, request_serializer=tensor_pb2.TensorChunk.SerializeToString
            )
            for address in addresses
        ]

    def send(self, data: bytes) -> None:
        """To all at once, in chunks of the size that ditmesh uses."""
        calls = [push.future(push_chunks(data, CHUNK_BYTES)) for push in self._pushes]
        for call in calls:
            call.result()


class _Coordinator:
    """The coordinator's own way to the ranks of a real group, from a job to its readiness."""

    def __init__(self, cluster: BenchCluster) -> None:
        # On a thread of its own: a coordinator's loop does not rest between jobs.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._cluster = cluster
        self._count = 0

    def __enter__(self) -> _Coordinator:
        self._thread.start()
        self._run(self._connect())
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
        """Milliseconds until every rank has a job with this text, on its device."""
        job = self._job(data)
        taken = timed(lambda: self._run(self._prepare(job)))()
        self._run(self._drop())
        return taken

    def send_elsewhere(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
        """As `send`, to ranks that see one another's memory but not the coordinator's."""
        with (
            mock.patch("coordinator.executors.sharing.host_id", return_value="another"),
            mock.patch("coordinator.executors.neighbours.host_id", return_value="another"),
        ):
            return self.send(data)

    def _job(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> Job:
        """A job whose text is `data`; other bytes, and so another hash, each time."""
        self._count += 1
        data[:4] = np.frombuffer(np.uint32(self._count).tobytes(), np.uint8)
        tokens = data.nbytes // (2 * synthetic.TEXT_WIDTH)
        text = TensorSpec(DataType.BF16, (1, tokens, synthetic.TEXT_WIDTH))
        # Values do not matter here, and finite ones are the coordinator's own business.
        tensor = WireTensor(text, data.tobytes()).hashed()
        spec = job_pb2.JobSpec(
            job_id=f"fan-out-{self._count}",
            model=synthetic.model_name(0),
            sampler="euler",
            schedule=job_pb2.Schedule(explicit=job_pb2.ExplicitSigmas(sigmas=[1.0, 0.0])),
            positive=job_pb2.Conditioning(text=0),
            empty_latent=job_pb2.EmptyLatent(batch=1, height=2, width=2),
            tensors=[tensor.spec.to_proto()],
        )
        return Job(spec, (tensor,))

    async def _connect(self) -> None:
        self._links = [
            NodeLink(address, silence_s=_SILENCE_S) for address in self._cluster.node_addresses
        ]
        self._watching = [asyncio.create_task(link.watch()) for link in self._links]
        while not all(link.up for link in self._links):
            await asyncio.sleep(0.01)
        epoch = self._cluster.client.cluster().group.epoch
        self._executor = Executor("group", self._links, epoch=epoch)

    async def _prepare(self, job: Job) -> None:
        self._prepared = await self._executor.prepare(job)

    async def _drop(self) -> None:
        self._prepared.close()

    async def _close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for link in self._links:
            await link.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
